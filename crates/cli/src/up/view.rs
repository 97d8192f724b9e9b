//! What `up` shows: lines for people, or one JSON object a line for scripts.

use std::io::{IsTerminal, Write};
use std::path::Path;
use std::time::Duration;

use countersign_api::admin::Status;
use countersign_identity::{DurationText, Timestamp};
use serde_json::{Value, json};

use super::layout::Whereabouts;
use super::plan::ServicePlan;
use super::story::ready_line;
use crate::output::{self, Output};

pub(crate) struct View {
    output: Output,
    live: bool,
    since: Option<Timestamp>,
    /// The end of the outage budget, as the server told it last. It lies no earlier when the server went away after that.
    budget_ends: Option<Timestamp>,
}

impl View {
    pub(crate) fn new(output: Output) -> Self {
        let live = matches!(output, Output::Human) && std::io::stdout().is_terminal();
        Self { output, live, since: None, budget_ends: None }
    }

    /// Whether there is a live line to draw.
    pub(crate) fn is_live(&self) -> bool {
        self.live
    }

    /// Whether a person reads it.
    pub(crate) fn is_for_people(&self) -> bool {
        matches!(self.output, Output::Human)
    }

    pub(crate) fn ready(
        &mut self,
        whereabouts: &Whereabouts,
        services: &[ServicePlan],
        status: Option<&Status>,
        now: Timestamp,
    ) {
        self.since = Some(now);
        match self.output {
            Output::Json => say(&ready_line(whereabouts).to_string()),
            Output::Human => say(&introduction(whereabouts, services, status, now)),
        }
    }

    pub(crate) fn said(&mut self, name: &str, event: &Value) {
        if matches!(self.output, Output::Json) {
            say(&json!({"event": "said", "process": name, "said": event}).to_string());
        }
    }

    pub(crate) fn ended(&mut self, name: &str, status: &str, wait: Duration) {
        let wait = DurationText(wait);
        match self.output {
            Output::Json => {
                let event = json!({"event": "ended", "process": name, "status": status,
                    "again_in": wait.to_string()});
                // Before `ready` nothing is said on standard output: it is the first line.
                if self.since.is_some() {
                    say(&event.to_string());
                } else {
                    output::aside(&event.to_string());
                }
            }
            Output::Human => {
                self.note(&format!("{name} ended ({status}), starting again in {wait}"));
            }
        }
    }

    /// Something that is not as whoever started it may think.
    pub(crate) fn warn(&mut self, warning: &str) {
        match self.output {
            Output::Json => {
                output::aside(&json!({"event": "warning", "warning": warning}).to_string());
            }
            Output::Human => self.note(&format!("warning: {warning}")),
        }
    }

    /// A line that stays, above the live one.
    fn note(&mut self, text: &str) {
        self.clear();
        output::aside(text);
    }

    fn clear(&self) {
        if self.live {
            live("\r\x1b[2K");
        }
    }

    pub(crate) fn draw(
        &mut self,
        status: Option<&Status>,
        services: &[ServicePlan],
        now: Timestamp,
    ) {
        let up = self.since.map_or(Duration::ZERO, |since| now.since(since));
        let line = match status {
            Some(status) => {
                self.budget_ends = status.outage_budget.ends_at;
                live_line(status, services, up, now)
            }
            None => away_line(up, self.budget_ends, now),
        };
        let width = usize::from(terminal_width());
        let line: String = line.chars().take(width.saturating_sub(1)).collect();
        live(&format!("\r\x1b[2K{line}"));
    }

    pub(crate) fn stopping(&mut self) {
        self.clear();
        if matches!(self.output, Output::Human) && self.since.is_some() {
            say("stopping: proxies drain first …");
        }
    }

    pub(crate) fn stopped(&mut self, cut: usize) {
        match self.output {
            Output::Json if self.since.is_some() => {
                say(&json!({"event": "stopped", "cut_off": cut}).to_string());
            }
            Output::Human if self.since.is_some() && cut == 0 => say("stopped."),
            Output::Human if 0 < cut => {
                say(&format!("stopped; {cut} processes had to be cut off."));
            }
            Output::Json | Output::Human => {}
        }
    }
}

/// A reader that went away ends nothing: the services go on.
fn say(text: &str) {
    let mut stdout = std::io::stdout().lock();
    let _closed = writeln!(stdout, "{text}").and_then(|()| stdout.flush());
}

/// Writes over the line that changes.
fn live(text: &str) {
    let mut stdout = std::io::stdout().lock();
    let _closed = write!(stdout, "{text}").and_then(|()| stdout.flush());
}

fn terminal_width() -> u16 {
    std::env::var("COLUMNS").ok().and_then(|columns| columns.parse().ok()).unwrap_or(120)
}

fn whole(span: Duration) -> DurationText {
    DurationText(Duration::from_secs(span.as_secs()))
}

fn introduction(
    whereabouts: &Whereabouts,
    services: &[ServicePlan],
    status: Option<&Status>,
    now: Timestamp,
) -> String {
    let mut lines = vec![
        format!("state     {}", whereabouts.data),
        format!("server    {} (agents), {} (operators)", whereabouts.server, whereabouts.admin),
        format!("agent     {}", whereabouts.agent),
        String::new(),
    ];
    let width = services.iter().map(|service| service.name.as_str().len()).max().unwrap_or(0);
    let ids = services.iter().map(|service| service.spiffe_id.as_str().len()).max().unwrap_or(0);
    for service in services {
        let place = match (service.door, service.front) {
            (Some(door), _) => format!("door {door} (mutual TLS)"),
            (None, Some(front)) => format!("front door http://{front}/"),
            (None, None) => "no door".to_owned(),
        };
        let renews =
            status.and_then(|status| renewal(status, service)).map_or_else(String::new, |at| {
                format!("  certificate renews in {}", whole(at.since(now)))
            });
        lines.push(format!(
            "{:width$}  {:ids$}  {place}{renews}",
            service.name.as_str(),
            service.spiffe_id.as_str()
        ));
    }
    lines.push(String::new());
    let uid = nix::unistd::geteuid();
    lines.push(format!(
        "All of these run as uid {uid}. One uid is no boundary: each of its processes can read the memory of the\n\
         others, and with it their keys. Give services that must not trust each other users of their own."
    ));
    for open in services.iter().flat_map(|service| &service.open_to_all) {
        lines.push(format!("Plain, and open to every process of this machine: {open}."));
    }
    lines.extend([String::new(), "Worth trying, in another terminal:".to_owned()]);
    lines.extend(next_commands(services).into_iter().map(|command| format!("  {command}")));
    lines.push(String::new());
    lines.push("ctrl-C stops everything.".to_owned());
    lines.join("\n")
}

fn renewal(status: &Status, service: &ServicePlan) -> Option<Timestamp> {
    let mut held = status.nodes.iter().flat_map(|node| &node.credentials);
    Some(held.find(|credential| credential.spiffe_id == service.spiffe_id)?.renewal_at)
}

fn next_commands(services: &[ServicePlan]) -> Vec<String> {
    let program = std::env::args().next().unwrap_or_else(|| "countersign".to_owned());
    let mut commands = vec![format!("{program} status"), format!("{program} console")];
    let front = services.iter().find_map(|service| service.front);
    commands.extend(front.map(|front| format!("curl http://{front}/")));
    let door = services.iter().find_map(|service| service.door);
    commands.extend(door.map(|door| {
        format!(
            "openssl s_client -ign_eof -connect {door} </dev/null; {program} status --handshakes"
        )
    }));
    commands
}

fn live_line(status: &Status, services: &[ServicePlan], up: Duration, now: Timestamp) -> String {
    let held = status.nodes.iter().flat_map(|node| &node.credentials);
    let next = held.min_by_key(|credential| credential.renewal_at);
    let renewal = next.map_or_else(String::new, |credential| {
        format!(" · {} renews in {}", credential.workload, whole(credential.renewal_at.since(now)))
    });
    let budget = whole(Duration::from_secs(status.outage_budget.guaranteed_seconds));
    let live = status.points.iter().filter(|point| point.live).count();
    format!(
        "up {} · revision {} · {} services, {live} enforcing · outage budget {budget}{renewal}",
        whole(up),
        status.revision,
        services.len(),
    )
}

fn away_line(up: Duration, budget_ends: Option<Timestamp>, now: Timestamp) -> String {
    let left = budget_ends.map_or_else(String::new, |ends| {
        format!(" · the first certificate expires in {}", whole(ends.since(now)))
    });
    format!("up {} · the server does not answer{left}", whole(up))
}

/// The end of a log, for the message about a process that does not come up.
pub(crate) fn last_words(log: &Path) -> String {
    const LINES: usize = 5;
    let text = std::fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<_> = text.lines().rev().take(LINES).collect();
    if lines.is_empty() {
        return String::new();
    }
    let words: Vec<_> = lines.into_iter().rev().map(|line| format!("\n  {line}")).collect();
    format!(", and its log {} ends:{}", log.display(), words.concat())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_outage_budget_goes_down_while_the_server_does_not_answer() {
        let (now, up) = (Timestamp::from_secs(1_000_000), Duration::from_secs(75));
        let ends = Some(now + Duration::from_millis(12_900));
        assert_eq!(
            away_line(up, ends, now),
            "up 1m15s · the server does not answer · the first certificate expires in 12s"
        );
        assert_eq!(away_line(up, None, now), "up 1m15s · the server does not answer");
    }
}
