//! What outlives its client, at its edge.

use std::{path::PathBuf, sync::Arc};

use fantail_pin::FanOut;
use fantail_proto::{
    route::Asked,
    websocket::{events, over_http::Session},
};
use http::header::CONTENT_TYPE;

use super::{closing::MAX_PARTINGS, *};
use crate::{
    config::Config,
    hub::Hub,
    log::Log,
    metrics::Counters,
    realm::Realms,
    route::{Route, Routes, tests::config},
};

fn route(config: &Config) -> Arc<Route> {
    let realms = Realms::load(config, None).unwrap();
    let routes = Routes::load(config, &realms, true).unwrap();
    let asked = Asked { host: "h", path: "/", tls: false, ws: true, id: None };
    Arc::clone(routes.find(asked).unwrap())
}

fn answer(far: &OverHttp, body: &'static [u8]) -> Vec<Action> {
    let headers = HeaderMap::from_iter([(CONTENT_TYPE, events::MEDIA_TYPE.parse().unwrap())]);
    far.answered(StatusCode::OK, &headers, &body.into(), 0)
}

/// A session that its origin has taken in.
fn open(route: &Arc<Route>) -> Rc<OverHttp> {
    let call = Call {
        route: Arc::clone(route),
        target: 0,
        tls: false,
        trusted_until: None,
        connection_id: [0; 16],
        request: b"/".as_slice().into(),
    };
    let far = OverHttp::new(call, Session::new(1000, false));
    assert!(far.next(0).is_some());
    assert_eq!(answer(&far, b"OPEN\r\n").len(), 1);
    far
}

#[test]
fn so_many_origins_are_told_at_once_and_all_when_the_server_stops() {
    let config = config(PathBuf::new(), &["* 127.0.0.1:1,over_http"], Vec::new());
    let route = route(&config);
    let log = Arc::new(Log::new(None, Arc::default()));
    let counters = Arc::new(Counters::default());
    let hub = Arc::new(Hub::with_log(1, &config.hub, log));
    let mut holds = Holds::new(hub, 0, FanOut::Send, &config, Arc::clone(&counters)).unwrap();
    let all: Vec<_> = (0..MAX_PARTINGS).map(|_| open(&route)).collect();
    all.iter().for_each(|far| holds.part_unheld(Rc::clone(far)));
    assert_eq!(holds.onward().count(), MAX_PARTINGS);
    assert_eq!(counters.farewells_dropped.get(), 0);
    let count = |holds: &mut Holds| {
        holds.expire();
        let begun = holds.onward().count();
        (begun, counters.farewells_told.get(), counters.farewells_dropped.get())
    };
    holds.part_unheld(open(&route));
    assert_eq!(count(&mut holds), (0, 0, 1));
    let told = |holds: &mut Holds, far: &Rc<OverHttp>| {
        let next = holds.answered(far, StatusCode::OK, &HeaderMap::new(), &Bytes::new());
        assert!(matches!(next, Next::Done));
    };
    told(&mut holds, &all[0]);
    holds.part_unheld(open(&route));
    assert_eq!(count(&mut holds), (1, 1, 1));
    holds.drain();
    (0..3).for_each(|_| holds.part_unheld(open(&route)));
    assert_eq!(count(&mut holds), (0, 1, 1));
    assert_eq!(holds.untold(), MAX_PARTINGS + 3);
    told(&mut holds, &all[1]);
    told(&mut holds, &all[2]);
    assert_eq!(count(&mut holds), (2, 3, 1));
    let failed = holds.unanswered(&all[3], Failure::Fatal);
    assert!(matches!(failed, Next::Done));
    assert_eq!((count(&mut holds), counters.farewells_failed.get()), ((1, 3, 1), 1));
}
