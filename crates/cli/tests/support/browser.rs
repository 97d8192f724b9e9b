//! A real browser: Debian's Chromium, driven over WebDriver (W3C) by its own driver, which trusts our root and nothing else of ours.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use crate::support::{PATIENCE, signal, text};

/// Switches of the browser: no window, and nothing on its own account.
const SWITCHES: [&str; 10] = [
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--no-default-browser-check",
    "--window-size=1280,900",
];

/// A browser with one window.
pub(crate) struct Browser {
    driver: Child,
    port: u16,
    session: String,
    _one: MutexGuard<'static, ()>,
}

/// The body of an answer; the driver keeps the connection open after it.
fn answer_of(mut stream: BufReader<TcpStream>) -> String {
    let mut length = 0;
    loop {
        let mut line = String::new();
        stream.read_line(&mut line).unwrap();
        let line = line.trim().to_ascii_lowercase();
        if line.is_empty() {
            break;
        }
        if let Some(told) = line.strip_prefix("content-length:") {
            length = told.trim().parse().unwrap();
        }
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body).unwrap();
    text(&body)
}

/// The port on which the driver says that it listens. What else it says is read on, so that it never waits for a reader.
fn port_of(stdout: ChildStdout) -> u16 {
    let mut lines = BufReader::new(stdout).lines().map_while(Result::ok);
    let port = lines.find_map(|line| {
        let (_, port) = line.split_once("started successfully on port ")?;
        port.trim_end_matches('.').parse().ok()
    });
    std::thread::spawn(move || lines.for_each(drop));
    port.expect("the driver says on which port it listens")
}

/// One browser at a time: two cores have enough to do with that.
static ONE: Mutex<()> = Mutex::new(());

impl Browser {
    /// Starts one whose home is this folder, and which trusts this root.
    pub(crate) fn start(home: &Path, root: &Path) -> Self {
        let one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
        let database = home.join(".pki/nssdb");
        std::fs::create_dir_all(&database).unwrap();
        let database = format!("sql:{}", database.display());
        let certutil = |arguments: &[&str]| {
            let output = Command::new("certutil").arg("-d").arg(&database).args(arguments).output();
            let output = output.expect("Debian's libnss3-tools is installed");
            assert!(output.status.success(), "{}", text(&output.stderr));
        };
        certutil(&["-N", "--empty-password"]);
        certutil(&["-A", "-t", "C,,", "-n", "root", "-i", root.to_str().unwrap()]);
        let mut driver = Command::new("chromedriver")
            .arg("--port=0")
            .env("HOME", home)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("Debian's chromium-driver is installed");
        let port = port_of(driver.stdout.take().unwrap());
        let mut browser = Self { driver, port, session: String::new(), _one: one };
        let profile = format!("--user-data-dir={}", home.join("profile").display());
        let switches: Vec<&str> = SWITCHES.into_iter().chain([profile.as_str()]).collect();
        let created = browser.call(
            "POST",
            "/session",
            &json!({ "capabilities": { "alwaysMatch": {
                "browserName": "chrome", "goog:chromeOptions": { "args": switches },
                "goog:loggingPrefs": { "browser": "ALL", "performance": "ALL" },
                "timeouts": { "script": 60_000, "pageLoad": 60_000 },
            }}}),
        );
        browser.session = format!("/session/{}", created["sessionId"].as_str().unwrap());
        browser
    }

    /// One command of the driver: what it answers.
    #[track_caller]
    fn call(&self, method: &str, path: &str, body: &Value) -> Value {
        self.try_call(method, path, body).unwrap_or_else(|why| panic!("{path}: {why}"))
    }

    /// The same; the driver may refuse, such as when the page is about to be another one.
    fn try_call(&self, method: &str, path: &str, body: &Value) -> Result<Value, String> {
        let body =
            if method == "GET" || method == "DELETE" { String::new() } else { body.to_string() };
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let path = format!("{}{path}", self.session);
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: 127.0.0.1:{}\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
            self.port,
            body.len()
        );
        stream.write_all((head + &body).as_bytes()).unwrap();
        let body = answer_of(BufReader::new(stream));
        let mut answer: Value =
            serde_json::from_str(&body).unwrap_or_else(|error| panic!("{path}: {error}: {body}"));
        let value = answer["value"].take();
        match value.get("error") {
            Some(error) => Err(format!("{error}: {}", value["message"])),
            None => Ok(value),
        }
    }

    /// Goes to an address.
    pub(crate) fn go(&self, url: &str) {
        self.call("POST", "/url", &json!({ "url": url }));
    }

    /// Where it is.
    pub(crate) fn url(&self) -> String {
        self.call("GET", "/url", &Value::Null).as_str().unwrap().to_owned()
    }

    /// What a piece of script returns.
    pub(crate) fn run(&self, script: &str) -> Value {
        self.call("POST", "/execute/sync", &json!({ "script": script, "args": [] }))
    }

    /// The same, of a page that may just become another one: nothing then.
    pub(crate) fn try_run(&self, script: &str) -> Option<Value> {
        self.try_call("POST", "/execute/sync", &json!({ "script": script, "args": [] })).ok()
    }

    /// What a piece of script hands to its last argument.
    pub(crate) fn wait_for(&self, script: &str) -> Value {
        self.call("POST", "/execute/async", &json!({ "script": script, "args": [] }))
    }

    /// A command of the browser's own protocol.
    pub(crate) fn devtools(&self, command: &str, parameters: &Value) -> Value {
        self.call("POST", "/goog/cdp/execute", &json!({ "cmd": command, "params": parameters }))
    }

    /// Runs a script that the page's policy would not let in: a tool's, not the page's.
    pub(crate) fn inject(&self, script: &str) {
        let answer =
            self.devtools("Runtime.evaluate", &json!({ "expression": format!("{script};1") }));
        assert!(answer.get("exceptionDetails").is_none(), "{answer}");
    }

    /// Types, as at a keyboard, into whatever has the focus. `\u{E004}` is the tabulator, `\u{E007}` the return key.
    pub(crate) fn types(&self, keys: &str) {
        let strokes: Vec<Value> = keys
            .chars()
            .flat_map(|key| {
                ["keyDown", "keyUp"].map(|kind| json!({ "type": kind, "value": key.to_string() }))
            })
            .collect();
        self.call(
            "POST",
            "/actions",
            &json!({ "actions": [{ "type": "key", "id": "keyboard", "actions": strokes }] }),
        );
    }

    /// How wide it is, and which colours it prefers.
    pub(crate) fn looks(&self, width: u32, colours: &str) {
        let size =
            json!({ "width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600 });
        self.devtools("Emulation.setDeviceMetricsOverride", &size);
        let media = json!({ "features": [{ "name": "prefers-color-scheme", "value": colours }] });
        self.devtools("Emulation.setEmulatedMedia", &media);
    }

    /// A picture of the whole page.
    pub(crate) fn picture(&self, to: &Path) {
        let whole = json!({ "format": "png", "captureBeyondViewport": true });
        let picture = self.devtools("Page.captureScreenshot", &whole);
        let png = STANDARD.decode(picture["data"].as_str().unwrap()).unwrap();
        std::fs::write(to, png).unwrap();
    }

    /// What the browser has complained of since it was asked last.
    pub(crate) fn complaints(&self) -> Vec<String> {
        self.log("browser")
    }

    /// Every address on a network that was asked for since this was asked last, whoever asked. The browser's own pages, such as
    /// an empty tab, come from itself.
    pub(crate) fn asked_for(&self) -> Vec<String> {
        let messages = self.log("performance");
        let sent = messages.iter().filter_map(|message| {
            let message: Value = serde_json::from_str(message).unwrap();
            let sent = message["message"]["method"] == "Network.requestWillBeSent";
            sent.then(|| {
                message["message"]["params"]["request"]["url"].as_str().unwrap().to_owned()
            })
        });
        sent.filter(|url| !url.starts_with("chrome:") && !url.starts_with("data:")).collect()
    }

    fn log(&self, kind: &str) -> Vec<String> {
        let entries = self.call("POST", "/se/log", &json!({ "type": kind }));
        let entries = entries.as_array().unwrap().iter();
        entries.map(|entry| entry["message"].as_str().unwrap().to_owned()).collect()
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // The driver ends the browser that it started; a test that failed already has said why.
        if !self.session.is_empty() && !std::thread::panicking() {
            let _ended = self.try_call("DELETE", "", &Value::Null);
        }
        signal(i32::try_from(self.driver.id()).unwrap(), "TERM");
        let _ended = self.driver.wait();
    }
}
