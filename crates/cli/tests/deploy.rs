//! Dashboards and alert rules name what there is: the reference of metrics is compared with what a server, an agent and a
//! proxy at work expose, and `deploy/` with the reference.

#![expect(clippy::unwrap_used, reason = "a test ends where something is not as expected")]

#[path = "support/domain.rs"]
mod domain;
mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Command;

use domain::{Domain, Part};
use serde_json::Value;
use support::{binary, get, root, text, until};

/// A metric as the reference has it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Metric {
    kind: String,
    labels: BTreeSet<String>,
}

type Metrics = BTreeMap<String, Metric>;

fn set(words: impl IntoIterator<Item = impl Into<String>>) -> BTreeSet<String> {
    words.into_iter().map(Into::into).collect()
}

/// What `countersign reference metrics` says.
fn reference() -> Metrics {
    let output = Command::new(binary()).args(["reference", "metrics"]).output().unwrap();
    let page = text(&output.stdout);
    let rows = page.lines().filter(|line| line.starts_with("| `countersign_"));
    let metric = |row: &str| {
        let cells: Vec<&str> = row.trim_matches('|').split('|').map(str::trim).collect();
        let labels = cells[2].split(", ").map(|label| label.trim_matches('`'));
        let labels = set(labels.filter(|label| !label.is_empty()));
        (cells[0].trim_matches('`').to_owned(), Metric { kind: cells[1].to_owned(), labels })
    };
    rows.map(metric).collect()
}

/// The names under which a metric shows in the text.
fn series(name: &str, kind: &str) -> Vec<String> {
    match kind {
        "histogram" => ["_bucket", "_sum", "_count"].map(|end| format!("{name}{end}")).to_vec(),
        "summary" => ["_sum", "_count"].map(|end| format!("{name}{end}")).to_vec(),
        _ => vec![name.to_owned()],
    }
}

/// The metric of a series.
fn metric_of<'a>(metrics: &'a Metrics, series_name: &str) -> Option<(&'a str, &'a Metric)> {
    let shows = |(name, metric): &(&String, &Metric)| {
        series(name, &metric.kind).iter().any(|series| series == series_name)
    };
    metrics.iter().find(shows).map(|(name, metric)| (name.as_str(), metric))
}

/// The series of an exposition, each with the labels that it has, and the kinds that it declares.
fn exposed(page: &str) -> (BTreeMap<String, BTreeSet<String>>, BTreeMap<String, String>) {
    let (mut found, mut kinds) = (BTreeMap::<_, BTreeSet<String>>::new(), BTreeMap::new());
    for line in page.lines() {
        if let Some(declared) = line.strip_prefix("# TYPE ") {
            let (name, kind) = declared.split_once(' ').unwrap();
            kinds.insert(name.to_owned(), kind.to_owned());
        } else if !line.starts_with('#') && !line.is_empty() {
            let (series, _value) = line.rsplit_once(' ').unwrap();
            let (name, labels) = series.split_once('{').unwrap_or((series, ""));
            let labels = labels.trim_end_matches('}').split("\",");
            let labels = labels.filter_map(|label| label.split_once('=')).map(|(name, _)| name);
            found.entry(name.to_owned()).or_default().extend(labels.map(str::to_owned));
        }
    }
    (found, kinds)
}

fn scrape(part: &Part) -> String {
    let address = part.ready["metrics"].as_str().unwrap_or_else(|| panic!("{}", part.ready));
    let (status, body) = get(address, "/metrics").unwrap();
    assert_eq!(status, 200, "{body}");
    body
}

/// What shows only once something has gone wrong that does not here.
const RARE: [&str; 2] =
    ["countersign_proxy_refused_connections_total", "countersign_proxy_last_failure_seconds"];

#[track_caller]
fn is_as_the_reference_says(program: &str, page: &str, reference: &Metrics) {
    let (found, kinds) = exposed(page);
    assert!(5 < found.len(), "{page}");
    for (series, labels) in &found {
        let (name, metric) = metric_of(reference, series)
            .unwrap_or_else(|| panic!("{program} exposes `{series}`, which the reference lacks"));
        let mut known = metric.labels.clone();
        if metric.kind == "histogram" {
            known.insert("le".to_owned());
        }
        assert!(labels.is_subset(&known), "`{series}` has {labels:?}, the reference {known:?}");
        let family = name.strip_suffix("_total").unwrap_or(name);
        let kind = kinds.get(name).or(kinds.get(family));
        assert_eq!(kind, Some(&metric.kind), "`{name}`");
    }
    let own = reference.iter().filter(|(name, _)| name.starts_with(program));
    for (name, metric) in own.filter(|(name, _)| !RARE.contains(&name.as_str())) {
        let family = name.strip_suffix("_total").unwrap_or(name);
        let shown = kinds.contains_key(name) || kinds.contains_key(family);
        assert!(shown, "the reference has `{name}`, and {program} does not expose it");
        let Some(labels) = found.get(&series(name, &metric.kind)[0]) else { continue };
        let missing: Vec<_> = metric.labels.difference(labels).collect();
        assert!(missing.is_empty(), "`{name}` lacks {missing:?}");
    }
}

fn proxy(me: &Path, forward: &str) -> Part {
    let file = |name: &str| me.join(name).to_str().unwrap().to_owned();
    let inbound = format!("service=me,listen=127.0.0.1:0,forward={forward}");
    let (chain, key, bundle) = (file("svid.pem"), file("svid-key.pem"), file("bundle.pem"));
    let identity = ["proxy", "--chain", &chain, "--key", &key, "--bundle", &bundle];
    let more = ["--inbound", &inbound, "--allow", "spiffe://prod.example/me"];
    Part::start(&[&identity[..], &more, &["--metrics", "127.0.0.1:0"]].concat(), &[])
}

fn curl(me: &Path, door: &str) {
    let file = |name: &str| me.join(name).to_str().unwrap().to_owned();
    let answered = Command::new("curl")
        .args(["-sS", "--insecure", "--max-time", "20", "--cert", &file("svid.pem")])
        .args(["--key", &file("svid-key.pem"), &format!("https://{door}/")])
        .output()
        .unwrap();
    assert!(answered.status.success(), "{}", text(&answered.stderr));
}

#[test]
fn the_reference_has_what_server_agent_and_proxy_expose_and_nothing_else() {
    let reference = reference();
    let domain = Domain::make_of(&[("COUNTERSIGN_METRICS", "127.0.0.1:0")], &[], |_ready| {
        support::manifest_of_me("5m")
    });
    let me = domain.credentials();
    // Nobody listens behind the door: the proxy answers by itself.
    let behind = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let proxy = proxy(&me, &behind);
    curl(&me, proxy.ready["inbound"][0]["listen"].as_str().unwrap());
    until("the agent's report has come to the server", || {
        scrape(&domain.server)
            .contains("countersign_server_outage_budget_ends_seconds ")
            .then_some(())
    });
    is_as_the_reference_says("countersign_server", &scrape(&domain.server), &reference);
    is_as_the_reference_says("countersign_agent", &scrape(&domain.agent), &reference);
    is_as_the_reference_says("countersign_proxy", &scrape(&proxy), &reference);
}

#[test]
fn every_part_says_when_it_was_last_good_and_when_it_ends() {
    let domain = Domain::make_of(&[("COUNTERSIGN_METRICS", "127.0.0.1:0")], &[], |_ready| {
        support::manifest_of_me("5m")
    });
    let me = domain.credentials();
    let proxy = proxy(&me, "127.0.0.1:9");
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    for (program, part) in [("server", &domain.server), ("agent", &domain.agent), ("proxy", &proxy)]
    {
        let page = until("the parts are told", || {
            let page = scrape(part);
            page.contains("ends_seconds{part=\"bundle\"}").then_some(page)
        });
        let value = |what: &str, of: &str| {
            let name = format!("countersign_{program}_{what}_seconds{{part=\"{of}\"}} ");
            let line = page.lines().find_map(|line| line.strip_prefix(&name));
            line.unwrap_or_else(|| panic!("{program} has no {name}: {page}"))
                .parse::<u64>()
                .unwrap()
        };
        for of in ["leaf", "issuer", "bundle"] {
            assert!(now < value("ends", of), "{program}: {of}");
        }
        for of in ["leaf", "issuer", "bundle", "policy"] {
            let good = value("last_good", of);
            assert!(now - 600 < good && good < now + 600, "{program}: {of} was good at {good}");
        }
    }
}

/// The expressions of a dashboard, the annotations' included.
fn expressions(value: &Value, found: &mut Vec<String>) {
    match value {
        Value::Object(members) => {
            found.extend(members.get("expr").and_then(Value::as_str).map(str::to_owned));
            members.values().for_each(|value| expressions(value, found));
        }
        Value::Array(values) => values.iter().for_each(|value| expressions(value, found)),
        _ => {}
    }
}

/// The names in an expression that are ours, and the labels that it asks for.
fn names(expression: &str) -> (Vec<String>, BTreeSet<String>) {
    let is_word = |letter: char| letter.is_ascii_alphanumeric() || letter == '_';
    let words = expression.split(|letter| !is_word(letter));
    let series = words.filter(|word| word.starts_with("countersign_")).map(str::to_owned).collect();
    let mut labels = BTreeSet::new();
    for (open, close) in [('{', '}'), ('(', ')')] {
        for (place, _) in expression.match_indices(open) {
            let inside = &expression[place + 1..];
            let inside = &inside[..inside.find(close).unwrap()];
            let before = expression[..place].trim_end();
            let grouping =
                ["by", "on", "without", "ignoring"].iter().any(|word| before.ends_with(word));
            if open == '{' {
                let matchers = inside.split("\",").filter(|matcher| matcher.contains('='));
                labels.extend(matchers.map(|matcher| {
                    matcher.split(['=', '!', '~']).next().unwrap().trim().to_owned()
                }));
            } else if grouping {
                labels.extend(inside.split(',').map(|label| label.trim().to_owned()));
            }
        }
    }
    (series, labels)
}

#[track_caller]
fn names_what_exists(place: &str, expression: &str, reference: &Metrics) {
    let (series, labels) = names(expression);
    let mut known = set(["instance", "job"]);
    assert_eq!(
        expression.matches('(').count(),
        expression.matches(')').count(),
        "{place}: {expression}"
    );
    for name in &series {
        let (_, metric) = metric_of(reference, name)
            .unwrap_or_else(|| panic!("{place} names `{name}`, which nothing exposes"));
        known.extend(metric.labels.iter().cloned());
        if name.ends_with("_bucket") {
            known.insert("le".to_owned());
        }
    }
    let unknown: Vec<_> = labels.difference(&known).collect();
    assert!(unknown.is_empty(), "{place} asks for {unknown:?} of {series:?}");
    assert!(!series.is_empty() || expression.starts_with("up{"), "{place}: {expression}");
}

fn files(folder: &str, extension: &str) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(root().join(folder)).unwrap();
    let files = entries.map(|entry| entry.unwrap().path());
    files.filter(|path| path.extension().is_some_and(|found| found == extension)).collect()
}

#[test]
fn dashboards_name_metrics_and_labels_that_exist() {
    let reference = reference();
    let mut used = BTreeSet::new();
    let boards = files("deploy/grafana", "json");
    assert!(5 <= boards.len());
    for path in &boards {
        let board: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
        let mut found = Vec::new();
        expressions(&board, &mut found);
        assert!(8 <= found.len(), "{}", path.display());
        for expression in found {
            names_what_exists(&path.display().to_string(), &expression, &reference);
            used.extend(names(&expression).0);
        }
        for panel in board["panels"].as_array().unwrap() {
            assert!(!panel["description"].as_str().unwrap().is_empty(), "{panel}");
        }
    }
    let unseen = reference.iter().filter(|(name, metric)| {
        !series(name, &metric.kind).iter().any(|series| used.contains(series))
    });
    let unseen: Vec<_> = unseen.map(|(name, _)| name).collect();
    assert!(unseen.is_empty(), "no dashboard shows {unseen:?}");
}

#[test]
fn alert_rules_name_metrics_that_exist_and_each_has_its_paragraph() {
    let reference = reference();
    let rules = std::fs::read_to_string(root().join("deploy/prometheus/alerts.yaml")).unwrap();
    let book = std::fs::read_to_string(root().join("docs/monitoring.md")).unwrap();
    let rules: Value = serde_saphyr::from_str(&rules).unwrap();
    let mut seen = BTreeSet::new();
    for rule in rules["groups"]
        .as_array()
        .unwrap()
        .iter()
        .flat_map(|group| group["rules"].as_array().unwrap())
    {
        let name = rule["alert"].as_str().unwrap();
        assert!(seen.insert(name), "{name} is there twice");
        names_what_exists(name, rule["expr"].as_str().unwrap(), &reference);
        let runbook = rule["annotations"]["runbook"].as_str().unwrap();
        assert!(runbook.ends_with(&format!("#{}", name.to_ascii_lowercase())), "{runbook}");
        let paragraph = book.split(&format!("### {name}\n\n")).nth(1);
        let words =
            paragraph.map(|text| text.split("\n#").next().unwrap().split_whitespace().count());
        assert!(Some(10) < words, "{name} has no paragraph in docs/monitoring.md");
        assert!(rule["for"].as_str().is_some() && rule["labels"]["severity"].as_str().is_some());
    }
    assert!(20 <= seen.len());
    for section in book.lines().filter_map(|line| line.strip_prefix("### ")) {
        assert!(seen.contains(section), "docs/monitoring.md speaks of {section}, which is no rule");
    }
}

/// Which alarm rings before what each component has of each part is lost, and a word of its expression that tells which that is.
const BEFORE_LOSS: [(&str, &str, &str, &str); 16] = [
    ("server", "leaf", "CountersignServerLeafEndsSoon", "server_ends_seconds{part=\"leaf\"}"),
    ("server", "issuer", "CountersignIssuerEndsSoon", "server_issuer_ends_seconds"),
    ("server", "bundle", "CountersignBundleEndsSoon", "server_ends_seconds{part=\"bundle\"}"),
    ("server", "policy", "CountersignPolicyEndsSoon", "server_ends_seconds{part=\"policy\"}"),
    ("agent", "leaf", "CountersignOutageBudgetShort", "agent_outage_budget_seconds"),
    ("agent", "issuer", "CountersignHeldIssuerEndsSoon", "agent_ends_seconds{part=\"issuer\"}"),
    ("agent", "bundle", "CountersignBundleEndsSoon", "agent_ends_seconds{part=\"bundle\"}"),
    ("agent", "policy", "CountersignPolicyEndsSoon", "agent_ends_seconds{part=\"policy\"}"),
    ("proxy", "leaf", "CountersignProxyLeafEndsSoon", "proxy_ends_seconds{part=\"leaf\"}"),
    ("proxy", "issuer", "CountersignHeldIssuerEndsSoon", "proxy_ends_seconds{part=\"issuer\"}"),
    ("proxy", "bundle", "CountersignBundleEndsSoon", "proxy_ends_seconds{part=\"bundle\"}"),
    ("proxy", "policy", "CountersignPolicyEndsSoon", "proxy_ends_seconds{part=\"policy\"}"),
    ("library", "leaf", "CountersignProxyLeafEndsSoon", "library_ends_seconds{part=\"leaf\"}"),
    ("library", "issuer", "CountersignHeldIssuerEndsSoon", "library_ends_seconds{part=\"issuer\"}"),
    ("library", "bundle", "CountersignBundleEndsSoon", "library_ends_seconds{part=\"bundle\"}"),
    ("library", "policy", "CountersignPolicyEndsSoon", "library_ends_seconds{part=\"policy\"}"),
];

#[test]
fn every_part_of_every_component_has_an_alarm_before_its_end_and_one_for_its_failure() {
    let reference = reference();
    let rules = std::fs::read_to_string(root().join("deploy/prometheus/alerts.yaml")).unwrap();
    let rules: Value = serde_saphyr::from_str(&rules).unwrap();
    let groups = rules["groups"].as_array().unwrap().iter();
    let rules: Vec<&Value> = groups.flat_map(|group| group["rules"].as_array().unwrap()).collect();
    let expression = |alert: &str| {
        let rule = rules.iter().find(|rule| rule["alert"] == alert);
        rule.unwrap_or_else(|| panic!("no {alert}"))["expr"].as_str().unwrap()
    };
    for (component, part, alert, word) in BEFORE_LOSS {
        let asks = expression(alert);
        assert!(asks.contains(&format!("countersign_{word}")), "{component}, {part}: {asks}");
        names_what_exists(alert, asks, &reference);
        // Whichever part it is that was wanted and not had.
        let fails = expression("CountersignPartFails");
        let compared = format!(
            "countersign_{component}_last_failure_seconds > countersign_{component}_last_good_seconds"
        );
        assert!(fails.contains(&compared), "{component}, {part}: {fails}");
    }
}

#[test]
fn a_name_or_label_that_does_not_exist_is_found() {
    let reference = reference();
    for expression in [
        "sum(countersign_server_no_such_thing)",
        "sum by (peer) (countersign_proxy_connections)",
        "countersign_server_points_count{colour=\"red\"}",
    ] {
        let found = std::panic::catch_unwind(|| names_what_exists("here", expression, &reference));
        assert!(found.is_err(), "{expression}");
    }
}
