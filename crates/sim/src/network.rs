//! Messages on their way: late, lost, doubled, overtaken, and what the server makes of those that arrive.

use std::time::Duration;

use countersign_api::v1;
use countersign_identity::Code;

use crate::control::{Asked, LineKey};
use crate::messages::{Reply, Request};
use crate::world::{Due, World};

/// So many openings are remembered before those are forgotten whose doubles have long arrived.
const OPENED_MAX: usize = 4096;
/// An opening arrives before so many more sessions have been asked for.
const OPENED_LATE: u64 = 64;

impl World {
    fn delay(&self) -> u64 {
        1 + self.below(self.settings.delay_max)
    }

    fn is_lost(&self, index: usize, server: usize) -> bool {
        let chance = !self.calm && self.below(1000) < self.settings.lost;
        let machine = &self.machines[index];
        chance || machine.cut_off || machine.cut_from == Some(server)
    }

    pub(crate) fn send(&mut self, (index, life): (usize, u64), server: usize, request: Request) {
        if self.is_lost(index, server) {
            let name = request.name();
            self.tell(&format!("a{index}'s {name} is lost"));
            return;
        }
        if !self.calm && self.below(1000) < self.settings.doubled {
            let again = self.delay();
            self.in_millis(again, Due::Arrives((index, life), server, request.clone()));
        }
        let delay = self.delay();
        self.in_millis(delay, Due::Arrives((index, life), server, request));
    }

    fn answer(&mut self, (index, life): (usize, u64), server: usize, reply: Reply) {
        if self.is_lost(index, server) {
            self.tell(&format!("an answer to a{index} is lost"));
            return;
        }
        let delay = self.delay();
        self.in_millis(delay, Due::Comes(index, life, Box::new(reply)));
    }

    pub(crate) fn arrives(&mut self, from: (usize, u64), server: usize, request: Request) {
        if !self.control.is_up(server) {
            return self.turned_away(from, server, &request);
        }
        let (index, life) = from;
        match request {
            // A stream is opened once: TCP would not deliver the same opening twice.
            Request::Open { session, .. } if !self.is_first((index, life, session)) => {}
            Request::Open { session, chain, hello } => {
                let labels = self.machines[index].labels.clone();
                let key = (index, life, session);
                let reply = match self.control.open((server, key), &labels, &chain, &hello) {
                    Ok(()) => Reply::Opened { session },
                    Err(refused) => {
                        let (code, why) = (refused.code, refused.why);
                        Reply::Ended { session, code, why }
                    }
                };
                let opened = matches!(reply, Reply::Opened { .. });
                let delay = self.delay();
                let at = self.control.in_order(key, self.now + Duration::from_millis(delay));
                if self.is_lost(index, server) {
                    return self.break_line(key);
                }
                self.push(at, Due::Comes(index, life, Box::new(reply)));
                if opened {
                    self.poll(key);
                }
            }
            Request::Sign { call, chain, request } => {
                let answer =
                    self.control.call_at(server, async |steps| steps.sign(&chain, request).await);
                if let Ok(answer) = &answer {
                    self.control.issued_at(server);
                    let issued = |result: &&v1::SignResult| {
                        matches!(result.outcome, Some(v1::sign_result::Outcome::Issued(_)))
                    };
                    let count = answer.results.iter().filter(issued).count();
                    let at = self.elapsed();
                    self.signed.extend(std::iter::repeat_n(at, count));
                }
                let answer = answer.map_err(|refused| refused.why);
                self.answer(from, server, Reply::Signed { call, answer });
            }
            Request::Renew { call, hello, ask } => {
                let exporter = [7; 32];
                let proof = |nonce: &[u8]| ask.proof(nonce, &exporter);
                let answer = self
                    .control
                    .call_at(server, async |steps| steps.renew(&hello, &exporter, proof).await);
                if answer.is_ok() {
                    self.control.issued_at(server);
                }
                let answer = answer.map_err(|refused| (refused.code, refused.why));
                self.answer(from, server, Reply::Renewed { call, answer });
            }
            Request::Ack { session, ack } => {
                let key = (index, life, session);
                if let Err(refused) = self.control.acknowledge(key, ack) {
                    self.hang_up((server, key), refused.code, refused.why);
                }
            }
            Request::Gone { session } => self.control.close((index, life, session)),
        }
    }

    /// Whether the opening of a stream has not arrived before.
    fn is_first(&mut self, key: LineKey) -> bool {
        if OPENED_MAX <= self.opened.len() {
            let machines = &self.machines;
            self.opened.retain(|(index, life, session)| {
                let now = machines[*index].life.as_ref().map_or(0, |life| life.session);
                machines[*index].lives == *life && now <= session + OPENED_LATE
            });
        }
        self.opened.insert(key)
    }

    /// Nobody listens: the connection is refused.
    fn turned_away(&mut self, from: (usize, u64), server: usize, request: &Request) {
        let why = || "nobody listens".to_owned();
        let reply = match *request {
            Request::Open { session, .. } => {
                let code = Code::Unavailable;
                Reply::Ended { session, code, why: why() }
            }
            Request::Sign { call, .. } => Reply::Signed { call, answer: Err(why()) },
            Request::Renew { call, .. } => {
                let refused = (Code::Unavailable, why());
                Reply::Renewed { call, answer: Err(refused) }
            }
            Request::Ack { .. } | Request::Gone { .. } => return,
        };
        self.answer(from, server, reply);
    }

    /// Asks a stream for all that it has to say now.
    pub(crate) fn poll(&mut self, key: LineKey) {
        let (index, life, session) = key;
        let Some(server) = self.control.server_of(key) else { return };
        loop {
            match self.control.ask(key) {
                Asked::Says(message, records) => {
                    if self.is_lost(index, server) {
                        self.break_line(key);
                        return;
                    }
                    let delay = Duration::from_millis(self.delay());
                    let at = self.control.in_order(key, self.now + delay);
                    let said = Reply::Said { session, message, records };
                    self.push(at, Due::Comes(index, life, Box::new(said)));
                }
                Asked::Waits(until, turn) => return self.push(until, Due::Line(key, turn)),
                Asked::Ended(code, why) => return self.hang_up((server, key), code, why),
                Asked::Gone => return,
            }
        }
    }

    /// The connection of a stream breaks: the server sees it now, the agent some time later.
    pub(crate) fn break_line(&mut self, key: LineKey) {
        self.control.close(key);
        self.goes_silent(key, Code::Unavailable, "the connection broke".to_owned());
    }

    /// The server ends a stream, and says why. When that is lost, the agent finds it out by itself.
    pub(crate) fn hang_up(&mut self, (server, key): (usize, LineKey), code: Code, why: String) {
        let (index, life, session) = key;
        if self.is_lost(index, server) {
            let why = "the connection broke".to_owned();
            return self.goes_silent(key, Code::Unavailable, why);
        }
        let delay = self.delay();
        let ended = Reply::Ended { session, code, why };
        self.in_millis(delay, Due::Comes(index, life, Box::new(ended)));
    }

    /// Nobody answers pings any more.
    fn goes_silent(&mut self, (index, life, session): LineKey, code: Code, why: String) {
        let later = 50 + self.below(15_000);
        self.in_millis(
            later,
            Due::Comes(index, life, Box::new(Reply::Ended { session, code, why })),
        );
    }

    /// Each server's snapshot catches up with the store some time later.
    pub(crate) fn advance_soon(&mut self) {
        for server in 0..self.control.count() {
            let later = self.below(500);
            self.in_millis(later, Due::Advance(server));
        }
    }

    pub(crate) fn advance(&mut self, server: usize) {
        if self.control.is_up(server) {
            self.control.advance(server);
        }
        self.follow(server);
    }

    /// Wakes every stream of a server when its snapshot has moved, whoever moved it.
    pub(crate) fn follow(&mut self, server: usize) {
        if self.control.has_moved(server) {
            for key in self.control.lines_at(server) {
                self.poll(key);
            }
        }
    }
}
