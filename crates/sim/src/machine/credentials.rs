//! The SVIDs that an agent asks for, its own among them, and what comes of it.

use std::sync::Arc;

use countersign_agent::core::{Credential, Event, Outcome, Workload};
use countersign_agent::server_link::{Renewed, SignAnswer, wire};
use countersign_api::v1;
use countersign_identity::{Code, Timestamp};
use countersign_pki::{Bundle, Bundles, PrivateKey, Role, make_csr, verify};

use super::{Machine, Node, PATIENCE, Svid};
use crate::keys;
use crate::messages::{Effect, RenewAsk, Reply, Request};

pub(super) enum Call {
    Sign(Vec<(Arc<Workload>, PrivateKey)>),
    Renew { server: usize, generation: u64 },
}

impl Machine {
    fn call(&mut self, call: Call, effects: &mut Vec<Effect>) -> u64 {
        let life = self.life.as_mut().expect("only a living agent calls");
        life.calls_made += 1;
        life.calls.insert(life.calls_made, call);
        effects.push(Effect::After(PATIENCE, Reply::NoAnswer { call: life.calls_made }));
        life.calls_made
    }

    pub(super) fn sign(&mut self, workloads: Vec<Arc<Workload>>, effects: &mut Vec<Effect>) {
        let mut items = Vec::new();
        let mut asked = Vec::new();
        let names: Vec<&str> = workloads.iter().map(|one| one.name.as_str()).collect();
        effects.push(Effect::Trace(format!("a{} asks for {}", self.index, names.join(" "))));
        for workload in workloads {
            let life = self.life.as_ref().expect("only a living agent asks");
            if let Some(svid) = life.svids.get(&workload.name) {
                effects.push(Effect::Renews(workload.name.clone(), svid.term));
            }
            let key = keys::key(&self.keys);
            let csr = make_csr(&key).expect("Ed25519 signs").into();
            items.push(v1::SignItem {
                workload: workload.name.to_string(),
                csr,
                ..Default::default()
            });
            asked.push((workload, key));
        }
        let call = self.call(Call::Sign(asked), effects);
        let chain = self.disk.node.shown();
        let server = self.life.as_ref().map_or(0, |life| life.server);
        let request = v1::SignRequest { items, ..v1::SignRequest::default() };
        effects.push(Effect::Send(server, Request::Sign { call, chain, request }));
    }

    pub(super) fn signed(
        &mut self,
        call: u64,
        answer: Result<v1::SignResponse, String>,
        effects: &mut Vec<Effect>,
    ) {
        let now = self.now();
        let Some(life) = &mut self.life else { return };
        let Some(Call::Sign(asked)) = life.calls.remove(&call) else { return };
        let bundle = life.state.replica().own_bundle().map(|bundle| Bundle::clone(bundle));
        let bundles = bundle.map(Bundles::of).unwrap_or_default();
        let mut fresh = Vec::new();
        let mut outcomes = Vec::new();
        match answer {
            Ok(answer) => {
                for ((workload, key), result) in asked.into_iter().zip(answer.results) {
                    let answer = wire::sign_answer(result);
                    let (outcome, svid) = judge(&workload, key, answer, &bundles, now);
                    fresh.extend(svid.map(|svid| (workload.name.clone(), Arc::new(svid))));
                    outcomes.push((workload.name.clone(), outcome));
                }
            }
            Err(why) => {
                let failed =
                    |workload: &Workload| (workload.name.clone(), Outcome::Failed(why.clone()));
                outcomes.extend(asked.iter().map(|(workload, _)| failed(workload)));
            }
        }
        for (name, outcome) in &outcomes {
            let what = match outcome {
                Outcome::Issued(one) => format!("gets `{name}` {}", one.term.digest),
                Outcome::Refused(code, _) => format!("is refused `{name}`: {code}"),
                Outcome::Failed(why) => format!("fails to get `{name}`: {why}"),
            };
            effects.push(Effect::Trace(format!("a{} {what}", self.index)));
        }
        let actions = life.state.step(Event::Signed(outcomes), now, &self.entropy);
        for (name, svid) in fresh {
            if life.state.holds(&name, &svid.term.digest) {
                life.svids.insert(name, Arc::clone(&svid));
                effects.push(Effect::Serves(svid));
            }
        }
        for action in actions {
            self.act(action, effects);
        }
        self.step(Event::Woke, effects);
    }

    pub(super) fn renew(&mut self, server: usize, effects: &mut Vec<Effect>) {
        let successor = match &self.disk.successor {
            Some(key) => Arc::clone(key),
            None => Arc::new(keys::key(&self.keys)),
        };
        self.disk.successor = Some(Arc::clone(&successor));
        let (generation, key) = (self.disk.node.generation, Arc::clone(&self.disk.node.key));
        let csr = make_csr(&successor).expect("Ed25519 signs");
        effects.push(Effect::Trace(format!("a{} renews itself from {generation}", self.index)));
        self.ask_renewal((server, generation), key, csr, effects);
    }

    fn ask_renewal(
        &mut self,
        (server, generation): (usize, u64),
        key: Arc<PrivateKey>,
        csr: Vec<u8>,
        effects: &mut Vec<Effect>,
    ) {
        let node = self.disk.node.id;
        let node_id = node.as_bytes().to_vec().into();
        let hello = v1::RenewHello { node_id, generation, chain: Vec::new() };
        let ask = RenewAsk { node, generation, key, csr };
        let call = self.call(Call::Renew { server, generation }, effects);
        effects.push(Effect::Send(server, Request::Renew { call, hello, ask }));
    }

    pub(super) fn renewed(
        &mut self,
        call: u64,
        answer: Result<v1::Renewed, (Code, String)>,
        effects: &mut Vec<Effect>,
    ) {
        let now = self.now();
        let Some(life) = &mut self.life else { return };
        let Some(Call::Renew { server, generation }) = life.calls.remove(&call) else { return };
        let ours = self.disk.node.generation;
        let renewed = match answer {
            // The answer before was lost; the server knows the successor already.
            Err((Code::StaleGeneration, _)) if generation == ours => {
                let successor = self.disk.successor.clone().expect("it was written down first");
                self.ask_renewal((server, ours + 1), successor, Vec::new(), effects);
                return;
            }
            Err((code, why)) => {
                effects.push(Effect::Trace(format!("a{} is not renewed: {code}", self.index)));
                self.step(Event::NodeRenewalFailed { code, why }, effects);
                return;
            }
            Ok(renewed) => wire::renewed(renewed).expect("our own server is understood"),
        };
        let successor = self.disk.successor.clone().expect("it was written down first");
        assert_eq!(renewed.generation, ours + 1, "the server registered the successor");
        assert_eq!(renewed.chain.leaf().spki(), successor.public().spki());
        let bundles = Bundles::of(renewed.bundle.clone());
        if let Err(refused) = verify(&renewed.chain.ders(), &bundles, Role::Client, now) {
            let (code, why) = (refused.code, refused.why);
            self.step(Event::NodeRenewalFailed { code, why }, effects);
            return;
        }
        let id = self.disk.node.id;
        let Renewed { chain, issued, generation, bundle } = renewed;
        self.disk.node = Node { id, generation, key: successor, chain, issued, bundle };
        self.disk.successor = None;
        effects.push(Effect::Trace(format!("a{} is of generation {generation}", self.index)));
        let credential = self.disk.node.credential();
        self.step(Event::NodeRenewed(credential), effects);
    }
}

/// Our own verifier's word on what the server gave, as the agent's renewal takes it.
fn judge(
    workload: &Workload,
    key: PrivateKey,
    answer: SignAnswer,
    bundles: &Bundles,
    now: Timestamp,
) -> (Outcome, Option<Svid>) {
    let (chain, issued) = match answer {
        SignAnswer::Issued { chain, issued } => (chain, issued),
        SignAnswer::Refused(code, why) => return (Outcome::Refused(code, why), None),
        SignAnswer::Broken(why) => return (Outcome::Failed(why), None),
    };
    assert_eq!(chain.leaf().spki(), key.public().spki(), "the server took another key");
    match verify(&chain.ders(), bundles, Role::Client, now) {
        Ok(verified) => {
            let credential = Credential::verified(&chain, &verified, issued);
            assert_eq!(verified.id, workload.id, "the server issued another identity");
            let svid = Svid { chain, key, term: credential.term, credential: credential.clone() };
            (Outcome::Issued(credential), Some(svid))
        }
        Err(refused) => (Outcome::Failed(refused.why), None),
    }
}
