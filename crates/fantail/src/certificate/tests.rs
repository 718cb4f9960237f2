use std::process::Command;

use proptest::prelude::*;

use super::*;
use crate::config::TlsProfile;

/// A folder with a certificate for each of `names`, made by openssl.
fn folder(names: &[&str]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    names.iter().for_each(|name| make(folder.path(), name));
    folder
}

fn make(folder: &Path, name: &str) {
    let made = Command::new("openssl")
        .args(
            "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=test".split(' '),
        )
        .args(["-keyout", &format!("{name}.key"), "-out", &format!("{name}.crt")])
        .current_dir(folder)
        .output()
        .unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
}

fn config(folder: &Path) -> config::Tls {
    config::Tls {
        cert_file: None,
        key_file: None,
        folder: Some(folder.to_path_buf()),
        profile: TlsProfile::Intermediate,
    }
}

/// Which of the files is shown.
fn shown(certificates: &Certificates, folder: &Path, name: Option<&str>, port: u16) -> Option<String> {
    let found = certificates.find(name, port)?;
    names(folder).unwrap().into_iter().find(|name| {
        let file = CertificateDer::from_pem_file(folder.join(format!("{name}.crt")));
        file.is_ok_and(|certificate| found.cert.first() == Some(&certificate))
    })
}

#[test]
fn a_name_has_its_certificate_or_its_wildcard_or_that_of_the_port() {
    let folder = folder(&["www.example.com", "_.example.com", "default_443", "_.com"]);
    let (certificates, errors) = Certificates::load(&config(folder.path()), None);
    assert!(errors.is_empty(), "{errors:?}");
    let long = format!("{}.example.com", "a".repeat(NAME_BYTES));
    for (name, port, expected) in [
        (Some("www.example.com"), 443, Some("www.example.com")),
        (Some("WWW.Example.COM"), 443, Some("www.example.com")),
        (Some("api.example.com"), 443, Some("_.example.com")),
        (Some("a.api.example.com"), 443, Some("default_443")),
        (Some("example.com"), 443, Some("_.com")),
        (Some("com"), 443, Some("default_443")),
        (Some("a.example.org"), 443, Some("default_443")),
        (Some("a.example.org"), 8443, None),
        (None, 443, Some("default_443")),
        (None, 8443, None),
        (Some(""), 443, Some("default_443")),
        (Some("../www.example.com"), 8443, None),
        (Some("x/.example.com"), 8443, None),
        (Some("a\0.example.com"), 8443, None),
        (Some(&long), 8443, None),
    ] {
        assert_eq!(shown(&certificates, folder.path(), name, port).as_deref(), expected, "{name:?} {port}");
    }
}

#[test]
fn a_broken_pair_is_told_and_what_was_there_stays() {
    let folder = folder(&["a.example", "b.example"]);
    let settings = config(folder.path());
    let (before, errors) = Certificates::load(&settings, None);
    assert!(errors.is_empty() && !before.have_changed(), "{errors:?}");
    let old = before.find(Some("a.example"), 1).unwrap();
    // A key that belongs to another certificate, as between the two steps of a renewal.
    fs::copy(folder.path().join("b.example.key"), folder.path().join("a.example.key")).unwrap();
    assert!(before.have_changed());
    let (between, errors) = Certificates::load(&settings, Some(&before));
    assert!(matches!(&*errors, [CertificateError { reason: Reason::Pair(_), .. }]), "{errors:?}");
    assert!(Arc::ptr_eq(&between.find(Some("a.example"), 1).unwrap(), &old));
    assert!(!between.have_changed(), "it is told once");
    fs::remove_file(folder.path().join("b.example.key")).unwrap();
    make(folder.path(), "a.example");
    fs::remove_file(folder.path().join("b.example.crt")).unwrap();
    assert!(between.have_changed());
    let (after, errors) = Certificates::load(&settings, Some(&between));
    assert!(errors.is_empty(), "{errors:?}");
    assert!(!Arc::ptr_eq(&after.find(Some("a.example"), 1).unwrap(), &old));
    assert!(after.find(Some("b.example"), 1).is_none());
    assert!(after.is_usable() && !Certificates::default().is_usable());
}

proptest! {
    #[test]
    fn any_name_is_looked_up_without_panic(name in "\\PC{0,300}") {
        prop_assert!(Certificates::default().find(Some(&name), 443).is_none());
    }
}
