//! The text of `/metrics`: OpenMetrics 1.0, or the older Prometheus text format 0.0.4 for who does not
//! ask for it. Reads counters and never writes one.

use std::{fmt, sync::Arc};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, MetricEncoder, NoLabelSet, text},
    metrics::MetricType,
    registry::Registry,
};

use super::{Counters, Family, LATENCY_BOUNDS, Latency, Process, Sample};

/// The two text formats.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Exposition {
    OpenMetrics,
    Prometheus,
}

impl Exposition {
    /// OpenMetrics for a scraper whose `Accept` names it, as Prometheus' does.
    pub fn accepted(accept: &[u8]) -> Self {
        let wanted = b"application/openmetrics-text";
        let named = accept.split(|byte| *byte == b',').any(|element| {
            element.trim_ascii().get(..wanted.len()).is_some_and(|name| name.eq_ignore_ascii_case(wanted))
        });
        if named { Self::OpenMetrics } else { Self::Prometheus }
    }

    pub fn content_type(self) -> &'static str {
        match self {
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
            Self::Prometheus => "text/plain; version=0.0.4; charset=utf-8",
        }
    }
}

/// Everything that is counted, now. `shards` in the order of their numbers.
pub fn expose(shards: &[Arc<Counters>], process: &Arc<Process>, exposition: Exposition) -> String {
    let mut registry = Registry::with_prefix("fantail");
    registry.register_collector(Box::new(Scrape { shards: shards.to_vec(), process: Arc::clone(process) }));
    let mut page = String::with_capacity(PAGE_BYTES + shards.len() * SHARD_BYTES);
    text::encode(&mut page, &registry).expect("a String takes every write");
    match exposition {
        Exposition::OpenMetrics => page,
        Exposition::Prometheus => prometheus(&page),
    }
}

/// A counter's `# HELP` and `# TYPE` name the samples, `_total` included, in the older format.
fn prometheus(page: &str) -> String {
    let mut out = String::with_capacity(page.len() + page.len() / 8);
    let mut lines = page.lines().peekable();
    while let Some(line) = lines.next() {
        let described = line.strip_prefix("# HELP ").and_then(|rest| rest.split_once(' '));
        let counter = lines.peek().and_then(|next| next.strip_suffix(" counter"));
        match (described, counter) {
            (Some((name, help)), Some(_)) => {
                lines.next();
                out.push_str(&format!("# HELP {name}_total {help}\n# TYPE {name}_total counter\n"));
            }
            _ if line == "# EOF" => {}
            _ => {
                out.push_str(line);
                out.push('\n');
            }
        }
    }
    out
}

#[derive(Debug)]
struct Scrape {
    shards: Vec<Arc<Counters>>,
    process: Arc<Process>,
}

impl Collector for Scrape {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let shards: Vec<_> = self
            .shards
            .iter()
            .enumerate()
            .map(|(number, table)| (Some(number.to_string()), &**table))
            .collect();
        for family in Counters::FAMILIES {
            write_family(&mut encoder, family, &shards)?;
        }
        for family in Process::FAMILIES {
            write_family(&mut encoder, family, &[(None, &*self.process)])?;
        }
        encoder
            .encode_descriptor(
                "build_info",
                "Always 1; the version is in the label.",
                None,
                MetricType::Gauge,
            )?
            .encode_family(&[("version", env!("CARGO_PKG_VERSION"))])?
            .encode_gauge(&1u32)
    }
}

/// One family's samples, those of every shard together, as the format wants them.
fn write_family<T>(
    encoder: &mut DescriptorEncoder<'_>,
    family: &Family<T>,
    tables: &[(Option<String>, &T)],
) -> fmt::Result {
    let (Some(first), Some((_, table))) = (family.members.first(), tables.first()) else { return Ok(()) };
    let mut metric = encoder.encode_descriptor(family.name, family.help, None, kind(&(first.read)(table)))?;
    for (shard, table) in tables {
        for member in family.members {
            let shard = shard.as_deref().map(|number| ("shard", number));
            let labels: Vec<_> = shard.into_iter().chain(member.label).collect();
            let sample = (member.read)(table);
            if labels.is_empty() {
                write_sample(&mut metric, &sample)?;
            } else {
                write_sample(&mut metric.encode_family(&labels)?, &sample)?;
            }
        }
    }
    Ok(())
}

fn kind(sample: &Sample<'_>) -> MetricType {
    match sample {
        Sample::Count(_) => MetricType::Counter,
        Sample::Gauge(_) => MetricType::Gauge,
        Sample::Latency(_) => MetricType::Histogram,
    }
}

fn write_sample(metric: &mut MetricEncoder<'_>, sample: &Sample<'_>) -> fmt::Result {
    match sample {
        Sample::Count(count) => metric.encode_counter::<NoLabelSet, u64, f64>(count, None),
        Sample::Gauge(value) => metric.encode_gauge(value),
        Sample::Latency(latency) => write_latency(metric, latency),
    }
}

fn write_latency(metric: &mut MetricEncoder<'_>, latency: &Latency) -> fmt::Result {
    let bounds = LATENCY_BOUNDS.into_iter().chain([f64::INFINITY]);
    let buckets: Vec<_> = bounds.zip(&latency.buckets).map(|(bound, count)| (bound, count.get())).collect();
    let count = buckets.iter().map(|(_, count)| count).sum();
    let sum = std::time::Duration::from_micros(latency.sum_us.get()).as_secs_f64();
    metric.encode_histogram::<NoLabelSet>(sum, count, &buckets, None)
}

/// What the page takes without shards, and what each adds: measured, with room for grown numbers.
const PAGE_BYTES: usize = 8 << 10;
const SHARD_BYTES: usize = 4 << 10;

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use super::*;

    fn page(exposition: Exposition) -> String {
        let shards = [Arc::new(Counters::default()), Arc::new(Counters::default())];
        shards[1].pins_poll.add(7);
        shards[1].ended_stalled.add(3);
        shards[0].origin_latency.observe(std::time::Duration::from_millis(2));
        shards[0].origin_latency.observe(std::time::Duration::from_mins(1));
        let process = Arc::new(Process::default());
        process.items_duplicate.add(5);
        expose(&shards, &process, exposition)
    }

    #[test]
    fn samples_follow_their_type_and_name_their_labels() {
        let page = page(Exposition::OpenMetrics);
        for line in [
            "# TYPE fantail_pins gauge",
            "fantail_pins{shard=\"1\",kind=\"poll\"} 7",
            "fantail_pins_ended_total{shard=\"1\",cause=\"stalled\"} 3",
            "fantail_items_total{result=\"duplicate\"} 5",
            "fantail_hub_channels 0",
            "fantail_origin_latency_seconds_bucket{le=\"0.0025\",shard=\"0\"} 1",
            "fantail_origin_latency_seconds_bucket{le=\"10.0\",shard=\"0\"} 1",
            "fantail_origin_latency_seconds_bucket{le=\"+Inf\",shard=\"0\"} 2",
            "fantail_origin_latency_seconds_sum{shard=\"0\"} 60.002",
        ] {
            assert!(page.lines().any(|l| l == line), "{line} is not in\n{page}");
        }
        assert!(page.ends_with("# EOF\n"));
    }

    /// Each name with its type, as a reader of the page would list them.
    fn listed(page: &str) -> BTreeMap<&str, &str> {
        let types = page.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' '));
        types.collect()
    }

    #[test]
    fn the_older_format_knows_its_types_and_names_alone() {
        let page = page(Exposition::Prometheus);
        let types = listed(&page);
        assert!(types.values().all(|kind| ["counter", "gauge", "histogram"].contains(kind)));
        for line in page.lines().filter(|line| !line.starts_with('#')) {
            let name = line.split(['{', ' ']).next().unwrap();
            let base = ["_bucket", "_sum", "_count"].iter().find_map(|suffix| name.strip_suffix(suffix));
            assert!(
                types.contains_key(name) || base.is_some_and(|base| types[base] == "histogram"),
                "{line}"
            );
        }
        assert!(!page.contains("# EOF"));
    }

    #[test]
    fn no_series_appears_twice() {
        let page = page(Exposition::OpenMetrics);
        let series: Vec<_> = page
            .lines()
            .filter(|line| !line.starts_with('#'))
            .map(|l| l.rsplit_once(' ').unwrap().0)
            .collect();
        assert_eq!(series.iter().collect::<BTreeSet<_>>().len(), series.len());
    }

    #[test]
    fn the_reference_lists_exactly_these_metrics() {
        let reference = include_str!("../../../../docs/metrics.md");
        let rows: BTreeMap<_, _> = reference
            .lines()
            .filter_map(|line| line.strip_prefix("| `fantail_")?.split_once("` | "))
            .map(|(name, rest)| (format!("fantail_{name}"), rest.split(' ').next().unwrap().to_owned()))
            .collect();
        let page = page(Exposition::Prometheus);
        let exported: BTreeMap<_, _> =
            listed(&page).into_iter().map(|(name, kind)| (name.to_owned(), kind.to_owned())).collect();
        assert_eq!(rows, exported);
    }

    #[test]
    fn only_who_asks_for_openmetrics_gets_it() {
        for (accept, expected) in [
            ("", Exposition::Prometheus),
            ("*/*", Exposition::Prometheus),
            ("text/plain;version=0.0.4", Exposition::Prometheus),
            ("Application/OpenMetrics-Text; version=1.0.0", Exposition::OpenMetrics),
            ("text/plain;q=0.3, application/openmetrics-text;q=0.5", Exposition::OpenMetrics),
        ] {
            assert_eq!(Exposition::accepted(accept.as_bytes()), expected, "{accept}");
        }
    }
}
