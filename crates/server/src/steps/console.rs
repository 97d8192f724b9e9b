//! The console's connections, as they are answered behind the handshake: for fuzzing.

use std::convert::Infallible;
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use axum::Router;
use countersign_identity::{Lifetime, Timestamp, TrustDomain};
use countersign_pki::NoVault;
use countersign_seal::Kek;
use hyper::body::{Body as _, Incoming};
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tower::{Service as _, service_fn};

use super::Steps;
use crate::Refused;
use crate::admin::{Admin, Mode, Operators};
use crate::authority::{Rotation, internal};
use crate::config::ISSUER_LIFETIME_SECS;
use crate::console::{self, By, ConsoleAt, Entrance, Guests, Streams};
use crate::rotate::Walker;
use crate::watch::{About, LogTree};

/// From where callers come.
const SOURCE: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));
/// Who made the links.
const ROOT: u32 = 0;
/// What is on its way between the two ends of a connection.
const PIPE_BYTES: usize = 64 * 1024;

/// How often others may go on before the end is said, when no page is being made.
const IDLE_TURNS: usize = 500;

/// The console of one server, with nobody in it.
pub struct Console {
    at: Arc<ConsoleAt>,
    router: Router,
    now: Timestamp,
}

/// A request and how it was answered.
#[derive(Debug)]
pub struct Answered {
    /// What was asked.
    pub method: http::Method,
    /// Of which page.
    pub path: String,
    /// What the request said.
    pub said: http::HeaderMap,
    /// How it was answered.
    pub status: http::StatusCode,
    /// With which fields.
    pub told: http::HeaderMap,
}

/// A request without a body that is not answered yet.
struct UnderWay(Arc<AtomicUsize>);

impl UnderWay {
    fn of(all: &Arc<AtomicUsize>) -> Self {
        all.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(all))
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Lets others go on until they have answered. Who hangs up before is not answered. A page is waited for, a body that may never
/// come for so many turns.
async fn until_answered(under_way: &AtomicUsize) {
    let mut idle = 0;
    while idle < IDLE_TURNS {
        idle = if under_way.load(Ordering::Relaxed) == 0 { idle + 1 } else { 0 };
        tokio::task::yield_now().await;
    }
}

impl Steps {
    /// The console of this server and its trust domain, under this name and port.
    ///
    /// # Errors
    /// When the system gives no randomness.
    pub fn console(&self, domain: TrustDomain, name: &str, port: u16) -> Result<Console, Refused> {
        let control = Arc::clone(&self.control);
        let (clock, entropy) = (Arc::clone(&control.clock), Arc::clone(&control.entropy));
        let (store, now) = (Arc::clone(&control.store), clock.now());
        let authorities = Arc::clone(&control.desk.authorities);
        let rotation = Arc::new(Rotation {
            store: Arc::clone(&store),
            authorities: Arc::clone(&authorities),
            kek: Kek::draw(&*entropy).map_err(internal)?,
            vault: Arc::new(NoVault),
            clock: Arc::clone(&clock),
            entropy: Arc::clone(&entropy),
            time: Arc::clone(&control.desk.time),
            duties: Arc::clone(&control.duties),
            lifetime: Lifetime::from_secs(ISSUER_LIFETIME_SECS).map_err(internal)?,
            feed: control.feed.clone(),
            watch: Arc::clone(&control.watch),
        });
        let walker = Arc::new(Walker::new(Arc::clone(&control), Arc::clone(&rotation)));
        let entrance = Entrance::new(clock, entropy);
        let at = Arc::new(ConsoleAt::new(entrance, &[name.to_owned()], port));
        let admin = Arc::new(Admin {
            about: About { domain, address: "127.0.0.1:1".to_owned(), started: now, views: None },
            store,
            log: LogTree::default(),
            operators: Operators::of(Path::new("/")).map_err(internal)?,
            mode: Mode::Serving { control, authorities, rotation, walker },
            console: Some(Arc::clone(&at)),
        });
        let console = console::Console { admin, at: Arc::clone(&at), live: Streams::default() };
        Ok(Console { at, router: console::router(Arc::new(console)), now })
    }
}

impl Console {
    /// The name of the cookie.
    pub fn cookie(&self) -> &str {
        &self.at.cookie
    }

    /// What stands behind the `#` of a new link.
    ///
    /// # Errors
    /// When the system gives no randomness.
    pub fn invite(&self) -> Result<String, Refused> {
        let (secret, _ends) = self.at.entrance.invite(ROOT).map_err(internal)?;
        Ok(secret.reveal().to_owned())
    }

    /// Uses a link up. The secret of the session that it begins.
    ///
    /// # Errors
    /// When it was used.
    pub fn enter(&self, link: &str) -> Result<String, Refused> {
        Ok(self.at.entrance.enter(link)?.secret.reveal().to_owned())
    }

    /// What the forms of a session carry.
    ///
    /// # Errors
    /// When there is no such session.
    pub fn form(&self, secret: &str) -> Result<String, Refused> {
        Ok(self.at.entrance.visitor(secret, By::Itself)?.form)
    }

    /// Answers what is said over one connection, as a whole. Says what each request came to, and all that was answered.
    pub async fn converse(&self, said: &[u8]) -> (Vec<Answered>, Vec<u8>) {
        let Some(guest) = Guests::default().enter(SOURCE, self.now) else {
            return Default::default();
        };
        let router = console::of_guest(self.router.clone(), guest);
        let answered = Arc::new(Mutex::new(Vec::new()));
        let under_way = Arc::new(AtomicUsize::new(0));
        let (seen, asked) = (Arc::clone(&answered), Arc::clone(&under_way));
        let service = service_fn(move |request: http::Request<Incoming>| {
            let (mut router, seen) = (router.clone(), Arc::clone(&seen));
            let (method, said) = (request.method().clone(), request.headers().clone());
            let path = request.uri().path().to_owned();
            let under_way = request.body().is_end_stream().then(|| UnderWay::of(&asked));
            async move {
                let answer = router.call(request).await?;
                drop(under_way);
                let (status, told) = (answer.status(), answer.headers().clone());
                let one = Answered { method, path, said, status, told };
                seen.lock().unwrap_or_else(PoisonError::into_inner).push(one);
                Ok::<_, Infallible>(answer)
            }
        });
        let (ours, theirs) = tokio::io::duplex(PIPE_BYTES);
        let (mut hears, mut says) = tokio::io::split(theirs);
        let builder = console::builder();
        let service = TowerToHyperService::new(service);
        let ending = async {
            // Whoever is refused may be hung up on before everything is said.
            drop(says.write_all(said).await);
            until_answered(&under_way).await;
            drop(says.shutdown().await);
            // A stream of events has no end of its own.
            until_answered(&under_way).await;
        };
        let talking = async {
            tokio::select! {
                biased;
                _ended = builder.serve_connection(TokioIo::new(ours), service) => {}
                () = ending => {}
            }
        };
        let mut heard = Vec::new();
        let hearing = async { drop(hears.read_to_end(&mut heard).await) };
        tokio::join!(talking, hearing);
        let answered =
            std::mem::take(&mut *answered.lock().unwrap_or_else(PoisonError::into_inner));
        (answered, heard)
    }
}
