//! A question as an operator asks it, understood by what is declared.

use std::collections::BTreeSet;

use countersign_api::admin::ExplainRequest;
use countersign_identity::{CanonicalPath, Name, SpiffeId};
use countersign_policy::{Principal, TopicAct, nearest};

use super::{Judge, Question, Unclear};

/// How many names a sentence lists at most.
const NAMES_TOLD_MAX: usize = 8;

impl Judge {
    pub(super) fn question(&self, request: &ExplainRequest) -> Result<Question, Unclear> {
        let act = request.method.as_ref().and_then(|method| method.parse::<TopicAct>().ok());
        if let Some(act) = act {
            return self.topic_question(request, act);
        }
        let call = match (&request.method, &request.path) {
            (None, None) => None,
            (Some(method), Some(path)) => {
                let path = path.split(['?', '#']).next().unwrap_or_default();
                let path = CanonicalPath::of(path).map_err(|why| {
                    Unclear(format!("`{path}` is refused before any policy is asked: {why}"))
                })?;
                Some((method.clone(), path))
            }
            (Some(method), None) => {
                return Err(Unclear(format!(
                    "`{method}` of what? Name the path as well, such as `{method} /`"
                )));
            }
            (None, Some(path)) => {
                return Err(Unclear(format!(
                    "what is done with `{path}`? Name the method before it, such as `GET {path}`"
                )));
            }
        };
        let (source, service) = (self.source(&request.from)?, self.service(&request.to)?);
        let at = request.time.unwrap_or(self.now);
        Ok(Question { source, service, call, topic: None, at, address: request.address })
    }

    fn topic_question(&self, request: &ExplainRequest, act: TopicAct) -> Result<Question, Unclear> {
        let (source, service) = (self.source(&request.from)?, self.service(&request.to)?);
        let Some(text) = &request.path else {
            return Err(Unclear(format!(
                "`{act}` what? Name the topic as well, such as `{act} charges-made`"
            )));
        };
        let holdings = self.policies.inventory().of(service.as_str());
        let topics = holdings.into_iter().flat_map(|one| one.topics.keys());
        let topics: BTreeSet<&str> = topics.map(Name::as_str).collect();
        let topic = text.parse().ok().filter(|topic: &Name| topics.contains(topic.as_str()));
        let topic = topic.ok_or_else(|| unknown(text, "topic of it", &topics))?;
        let at = request.time.unwrap_or(self.now);
        let (topic, address) = (Some((act, topic)), request.address);
        Ok(Question { source, service, call: None, topic, at, address })
    }

    fn source(&self, text: &str) -> Result<Principal, Unclear> {
        if let Ok(id) = text.parse::<SpiffeId>() {
            return Ok(self.principal(&id));
        }
        if let Ok(name) = text.parse::<Name>() {
            if self.ids.contains_key(&name) {
                return Ok(Principal::Named(name));
            }
            if let Some(service) = self.services.get(&name) {
                return Ok(Principal::Named(service.workload.clone()));
            }
        }
        let declared: BTreeSet<&str> =
            self.ids.keys().chain(self.services.keys()).map(Name::as_str).collect();
        Err(unknown(text, "workload or service", &declared))
    }

    fn service(&self, text: &str) -> Result<Name, Unclear> {
        let id = text.parse::<SpiffeId>().ok();
        let name =
            id.as_ref().map_or_else(|| text.parse::<Name>().ok(), |id| self.names.get(id).cloned());
        let Some(name) = name else {
            return Err(self.unknown_service(text));
        };
        if id.is_none() && self.services.contains_key(&name) {
            return Ok(name);
        }
        let mut of = self.services.iter().filter(|(_, spec)| spec.workload == name);
        match (of.next(), of.next()) {
            (Some((service, _)), None) => Ok(service.clone()),
            (Some((first, _)), Some((second, _))) => Err(Unclear(format!(
                "workload `{name}` has several services, such as `{first}` and `{second}`: name one of them"
            ))),
            (None, _) if self.ids.contains_key(&name) => {
                Err(Unclear(format!("workload `{name}` has no service that could be asked")))
            }
            (None, _) => Err(self.unknown_service(text)),
        }
    }

    fn unknown_service(&self, text: &str) -> Unclear {
        unknown(text, "service", &self.services.keys().map(Name::as_str).collect())
    }
}

fn unknown(text: &str, what: &str, declared: &BTreeSet<&str>) -> Unclear {
    let shown: String = text.chars().take(80).collect();
    if let Some(near) = nearest(text, declared.iter().copied()) {
        return Unclear(format!("no manifest declares a {what} `{shown}`: did you mean `{near}`?"));
    }
    let some: Vec<String> =
        declared.iter().take(NAMES_TOLD_MAX).map(|name| format!("`{name}`")).collect();
    match some.as_slice() {
        [] => Unclear(format!("no manifest declares a {what} `{shown}`, nor any other")),
        some => {
            let more = if declared.len() <= NAMES_TOLD_MAX { "" } else { ", …" };
            Unclear(format!(
                "no manifest declares a {what} `{shown}`: there are {}{more}",
                some.join(", ")
            ))
        }
    }
}
