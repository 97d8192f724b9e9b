//! Who is granted what against who uses what, as a picture: for Graphviz, or drawn as it is.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use countersign_api::admin::{Answer, FlowsResponse};

/// The form of the picture.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Form {
    /// For Graphviz.
    Dot,
    /// An image.
    Svg,
}

/// What is between two of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Used,
    Unused,
    Observed,
    Denied,
}

impl Kind {
    fn colour(self) -> &'static str {
        match self {
            Self::Used => "#2a7a2a",
            Self::Unused => "#999999",
            Self::Observed => "#c77700",
            Self::Denied => "#c02020",
        }
    }

    fn dashed(self) -> bool {
        match self {
            Self::Used | Self::Denied => false,
            Self::Unused | Self::Observed => true,
        }
    }

    fn word(self) -> &'static str {
        match self {
            Self::Used => "used",
            Self::Unused => "granted, never used",
            Self::Observed => "would be denied",
            Self::Denied => "denied",
        }
    }
}

/// The lines between sources and services, each with what is to be read on it.
type Edges = BTreeMap<(String, String, Kind), BTreeSet<String>>;

pub(crate) fn draw(response: &FlowsResponse, form: Form) -> String {
    let edges = edges(response);
    match form {
        Form::Dot => dot(&edges),
        Form::Svg => svg(&edges),
    }
}

fn edges(response: &FlowsResponse) -> Edges {
    let mut edges = Edges::new();
    for flow in &response.flows {
        let kind = match (flow.decision, flow.mode.is_usual()) {
            (Answer::Allow, _) => Kind::Used,
            (Answer::Deny, true) => Kind::Denied,
            (Answer::Deny, false) => Kind::Observed,
        };
        let key = (flow.source.clone(), flow.service.to_string(), kind);
        edges.entry(key).or_default().insert(flow.what());
    }
    let any =
        |names: &[String]| if names.is_empty() { vec!["*".to_owned()] } else { names.to_vec() };
    for grant in &response.unused {
        for source in any(&grant.sources) {
            for service in any(&grant.services) {
                let key = (source.clone(), service, Kind::Unused);
                edges.entry(key).or_default().insert(grant.policy.clone());
            }
        }
    }
    edges
}

fn dot(edges: &Edges) -> String {
    let quoted = |text: &str| format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""));
    let mut text =
        "digraph flows {\n  rankdir=LR;\n  node [shape=box, fontname=\"sans-serif\"];\n".to_owned();
    for ((source, service, kind), labels) in edges {
        let labels: Vec<&str> = labels.iter().map(String::as_str).collect();
        let style = if kind.dashed() { "dashed" } else { "solid" };
        // Writing to a string cannot fail.
        let _ = writeln!(
            text,
            "  {} -> {} [label={}, color=\"{}\", style={style}, tooltip={}];",
            quoted(source),
            quoted(service),
            quoted(&labels.join("\\n")).replace("\\\\n", "\\n"),
            kind.colour(),
            quoted(kind.word()),
        );
    }
    text + "}\n"
}

const COLUMN: usize = 300;
const ROW: usize = 40;

/// Sources at the left, services at the right, one line of text for each line between.
fn svg(edges: &Edges) -> String {
    let sources: BTreeSet<&str> = edges.keys().map(|key| key.0.as_str()).collect();
    let services: BTreeSet<&str> = edges.keys().map(|key| key.1.as_str()).collect();
    let row =
        |names: &BTreeSet<&str>, name: &str| names.iter().position(|one| *one == name).unwrap_or(0);
    let rows = sources.len().max(services.len()).max(1);
    let (width, picture) = (COLUMN * 2 + 200, rows * ROW + 20);
    let height = picture + edges.len() * 18 + 30;
    let mut text = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" font-family=\"sans-serif\" font-size=\"13\">\n"
    );
    for ((source, service, kind), labels) in edges {
        let (from, to) = (row(&sources, source) * ROW + 25, row(&services, service) * ROW + 25);
        let dash = if kind.dashed() { " stroke-dasharray=\"5 4\"" } else { "" };
        let labels: Vec<&str> = labels.iter().map(String::as_str).collect();
        // Writing to a string cannot fail.
        let _ = writeln!(
            text,
            "<line x1=\"200\" y1=\"{from}\" x2=\"{}\" y2=\"{to}\" stroke=\"{}\" stroke-width=\"2\"{dash}><title>{}: {}</title></line>",
            COLUMN + 200,
            kind.colour(),
            kind.word(),
            escaped(&labels.join(", ")),
        );
    }
    for (names, x, anchor) in [(&sources, 190, "end"), (&services, COLUMN + 210, "start")] {
        for (index, name) in names.iter().enumerate() {
            let y = index * ROW + 29;
            let _ = writeln!(
                text,
                "<text x=\"{x}\" y=\"{y}\" text-anchor=\"{anchor}\">{}</text>",
                escaped(name)
            );
        }
    }
    for (index, ((source, service, kind), labels)) in edges.iter().enumerate() {
        let labels: Vec<&str> = labels.iter().map(String::as_str).collect();
        let line = format!("{source} → {service}: {} ({})", labels.join(", "), kind.word());
        let y = picture + index * 18 + 20;
        let _ = writeln!(
            text,
            "<text x=\"20\" y=\"{y}\" fill=\"{}\">{}</text>",
            kind.colour(),
            escaped(&line)
        );
    }
    text + "</svg>\n"
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use countersign_api::admin::{FlowView, UnusedGrant};
    use countersign_identity::{Mode, Timestamp};

    use super::*;

    #[test]
    fn names_cannot_break_out_of_the_picture() {
        let flow = FlowView {
            source: "a\"<b>".to_owned(),
            source_id: "spiffe://shop.example/a".parse().unwrap(),
            service: "payments".parse().unwrap(),
            operation: None,
            method: Some("POST".to_owned()),
            path: Some("/a&b".to_owned()),
            decision: Answer::Deny,
            mode: Mode::Enforce,
            policies: Vec::new(),
            first_seen: Timestamp::EPOCH,
            last_seen: Timestamp::EPOCH,
            count: 1,
        };
        let grant = UnusedGrant {
            policy: "p".to_owned(),
            sources: Vec::new(),
            services: vec!["x".to_owned()],
        };
        let response =
            FlowsResponse { flows: vec![flow], unused: vec![grant], dropped: 0, kept_days: 90 };
        let picture = draw(&response, Form::Svg);
        assert!(picture.contains("a&quot;&lt;b&gt;") && picture.contains("/a&amp;b"), "{picture}");
        let picture = draw(&response, Form::Dot);
        assert!(picture.contains(r#""a\"<b>" -> "payments""#), "{picture}");
        assert!(picture.contains(r#""*" -> "x""#) && picture.contains("dashed"), "{picture}");
    }
}
