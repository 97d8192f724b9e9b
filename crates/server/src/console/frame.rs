//! What all pages have around them.

use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use countersign_identity::Timestamp;

use crate::admin::problem::Problem;
use crate::console::Html;
use crate::console::html::Span;
use crate::console::routes::Ask;

/// The parts of the console, in the order in which they are offered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Section {
    Overview,
    Map,
    Workloads,
    Nodes,
    Authorities,
    Policies,
    Revocations,
    Log,
    Handshakes,
}

impl Section {
    pub(super) const ALL: [Self; 9] = [
        Self::Overview,
        Self::Map,
        Self::Workloads,
        Self::Nodes,
        Self::Authorities,
        Self::Policies,
        Self::Revocations,
        Self::Log,
        Self::Handshakes,
    ];

    /// Its word and its address.
    pub(super) const fn place(self) -> (&'static str, &'static str) {
        match self {
            Self::Overview => ("Overview", "/"),
            Self::Map => ("Map", "/map"),
            Self::Workloads => ("Workloads", "/workloads"),
            Self::Nodes => ("Nodes", "/nodes"),
            Self::Authorities => ("Authorities", "/authorities"),
            Self::Policies => ("Policies", "/policies"),
            Self::Revocations => ("Revocations", "/revocations"),
            Self::Log => ("Log", "/log"),
            Self::Handshakes => ("Handshakes", "/handshakes"),
        }
    }
}

/// A page before it has its frame.
pub(super) struct Page {
    pub(super) section: Section,
    /// What it is about, below its section; nothing on the section's own page.
    pub(super) subject: Option<String>,
    pub(super) body: Html,
    /// A script that it needs besides.
    pub(super) script: Option<&'static str>,
}

impl Page {
    /// The page of a section.
    pub(super) fn of(section: Section, body: Html) -> Self {
        Self { section, subject: None, body, script: None }
    }
}

const HEAD: &str = "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\">\
    <title>{} · {}</title><meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\
    <meta name=\"color-scheme\" content=\"light dark\"><link rel=\"icon\" type=\"image/svg+xml\" href=\"/assets/icon.svg\">\
    <link rel=\"stylesheet\" href=\"/assets/console.css\">";

impl Ask {
    /// The answer: the page in its frame, or a page that says why there is none.
    pub(super) fn show(&self, page: Result<Page, Problem>) -> Response {
        match page {
            Ok(page) => answer(StatusCode::OK, self.framed(&page)),
            Err(problem) => {
                let details = problem.details();
                let status = StatusCode::from_u16(details.status);
                let mut body = Html::default();
                body.put("<h1>That did not work</h1><div class=\"notice bad\"><p>");
                body.text(&details.detail).put("</p><p class=\"muted\">Reason: <code>");
                body.text(&details.code).put("</code></p></div><p><a href=\"/\">Overview</a></p>");
                let page = Page::of(Section::Overview, body);
                answer(status.unwrap_or(StatusCode::INTERNAL_SERVER_ERROR), self.framed(&page))
            }
        }
    }

    fn framed(&self, page: &Page) -> Html {
        let (word, place) = page.section.place();
        let domain = &self.console.admin.about.domain;
        let mut html = Html::default();
        html.fill(HEAD, &[&page.subject.as_deref().unwrap_or(word), domain]);
        html.put("<script type=\"module\" src=\"/assets/live.js\"></script>");
        if let Some(script) = page.script {
            html.fill("<script type=\"module\" src=\"/assets/{}\"></script>", &[&script]);
        }
        html.put("</head><body><a class=\"skip\" href=\"#main\">Skip to the page</a><header class=\"side\">");
        html.fill(
            "<a class=\"brand\" href=\"/\"><img src=\"/assets/icon.svg\" alt=\"\" width=\"28\" height=\"28\">\
             <span><strong>Countersign</strong><bdi>{}</bdi></span></a><nav aria-label=\"Pages\"><ul>",
            &[domain],
        );
        for section in Section::ALL {
            let (word, place) = section.place();
            let current = if section == page.section { "page" } else { "false" };
            html.fill(
                "<li><a href=\"{}\" aria-current=\"{}\">{}</a></li>",
                &[&place, &current, &word],
            );
        }
        html.put("</ul></nav><div class=\"foot\">");
        html.put("<p id=\"link\" class=\"link\" role=\"status\">Not live</p>");
        html.fill(
            "<p>Read-only, as uid {}, for {}</p>\
             <form method=\"post\" action=\"/logout\"><input type=\"hidden\" name=\"form\" value=\"{}\">\
             <button class=\"quiet\">Sign out</button></form></div></header><main id=\"main\" tabindex=\"-1\">",
            &[&self.visitor.operator, &Span(self.visitor.ends.since(self.now())), &self.visitor.form],
        );
        if let Some(subject) = &page.subject {
            html.fill(
                "<nav class=\"crumbs\" aria-label=\"Where this is\"><a href=\"{}\">{}</a> <span aria-hidden=\"true\">/</span> \
                 <bdi>{}</bdi></nav>",
                &[&place, &word, subject],
            );
        }
        html.add(&page.body).put("</main></body></html>");
        html
    }

    /// What time it is.
    pub(super) fn now(&self) -> Timestamp {
        match self.console.admin.control() {
            Ok(control) => control.clock.now(),
            Err(_sealed) => self.console.admin.about.started,
        }
    }
}

/// The page on which somebody comes in. The link's secret is behind the `#`, which browsers tell nobody.
pub(super) fn login(domain: &countersign_identity::TrustDomain, failed: Option<&str>) -> Html {
    let mut html = Html::default();
    html.fill(HEAD, &[&"Sign in", domain]);
    html.put(
        "<script type=\"module\" src=\"/assets/login.js\"></script></head><body class=\"door\"><main id=\"main\">\
         <img src=\"/assets/icon.svg\" alt=\"\" width=\"56\" height=\"56\"><h1>Countersign</h1><p class=\"domain\"><bdi>",
    );
    html.text(domain).put("</bdi></p>");
    if let Some(why) = failed {
        html.put("<p class=\"notice bad\" role=\"alert\">").text(why).put("</p>");
    }
    html.put(
        "<form method=\"post\" action=\"/login\" autocomplete=\"off\"><label for=\"link\">Link or code</label>\
         <input id=\"link\" name=\"link\" required maxlength=\"400\" spellcheck=\"false\" autocapitalize=\"off\">\
         <button>Sign in</button></form><p class=\"muted\">On the server’s machine, <code>countersign console</code> \
         prints a link that lets one browser in, once, within five minutes.</p></main></body></html>",
    );
    html
}

pub(super) fn answer(status: StatusCode, html: Html) -> Response {
    (status, [(header::CONTENT_TYPE, "text/html; charset=utf-8")], html.into_string())
        .into_response()
}
