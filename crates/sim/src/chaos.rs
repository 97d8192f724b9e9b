//! What goes wrong, what operators change meanwhile, and what must be true once everything is well again.

use std::time::Duration;

use countersign_api::resource::Kind;
use countersign_identity::{Code, Name, Reason};
use serde_json::Value;

use crate::clocks::skewed;
use crate::machine::Machine;
use crate::manifests::{name, policy, workload};
use crate::mesh::Trouble;
use crate::revocations::Leaked;
use crate::world::World;

/// Something that befalls the world.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Fault {
    ServerStops(usize),
    ServerStarts(usize),
    CutOff(usize),
    /// From one server only.
    CutFrom(usize, usize),
    Rejoins(usize),
    Crashes(usize),
    Restarts(usize),
    Sleeps(usize, u64),
    ClockSteps(usize, i64),
    ServerClockSteps(usize, i64),
    Changes(usize),
    Revokes(usize, Leaked, Reason),
    Suspends(usize),
    Resumes(usize),
    /// At one server.
    Trims(usize),
    LosesARule,
    Mesh(Trouble),
}

/// What may leak in a world that goes on.
const LEAKS: [Leaked; 5] =
    [Leaked::Serial, Leaked::Key, Leaked::Identity, Leaked::Node, Leaked::OtherAuthority];

impl World {
    /// Lets faults and changes befall the world at random for this long.
    pub fn plague(&mut self, span: Duration) {
        self.calm = false;
        if self.is_far_off() {
            self.draw_server_clocks();
        }
        self.plague_mesh(span);
        let longest = self.settings.pause_max;
        let machines = self.settings.machines as u64;
        let end = u64::try_from(span.as_millis()).unwrap_or(u64::MAX);
        let mut at = 0;
        loop {
            at += 500 + self.below(longest);
            if end <= at {
                return;
            }
            let machine = usize::try_from(self.below(machines)).unwrap_or(0);
            let lasts = 200 + self.below(longest * 10 / 3);
            match self.below(25) {
                0 | 20 => {
                    let server = self.any_server();
                    self.fault_in(at, Fault::ServerStops(server));
                    self.fault_in(at + lasts / 2, Fault::ServerStarts(server));
                }
                21 => {
                    self.fault_in(at, Fault::CutFrom(machine, self.any_server()));
                    self.fault_in(at + lasts, Fault::Rejoins(machine));
                }
                1 | 2 => {
                    self.fault_in(at, Fault::CutOff(machine));
                    self.fault_in(at + lasts, Fault::Rejoins(machine));
                }
                3 => {
                    self.fault_in(at, Fault::Crashes(machine));
                    self.fault_in(at + lasts / 4, Fault::Restarts(machine));
                }
                4 => self.fault_in(at, Fault::Sleeps(machine, lasts * 2)),
                5 => {
                    let step = i64::try_from(self.below(200_000_000)).unwrap_or(0) - 100_000_000;
                    self.fault_in(at, Fault::ClockSteps(machine, step));
                    self.fault_in(at + lasts, Fault::ClockSteps(machine, 0));
                }
                6..=9 => self.leak_in(at, machine),
                10 => {
                    self.fault_in(at, Fault::Suspends(machine));
                    self.fault_in(at + lasts, Fault::Resumes(machine));
                }
                11 | 12 => self.fault_in(at, Fault::Trims(self.any_server())),
                22..=24 if !self.settings.server_skew.is_zero() => {
                    let skew = self.any_server_skew();
                    self.fault_in(at, Fault::ServerClockSteps(self.any_server(), skew));
                }
                13 => self.fault_in(at, Fault::LosesARule),
                _ => self.fault_in(at, Fault::Changes(machine)),
            }
            // Whatever else goes on, things leak.
            if self.below(2) == 0 {
                let later = self.below(3000);
                self.leak_in(at + later, machine);
            }
        }
    }

    fn leak_in(&mut self, millis: u64, machine: usize) {
        let leaked = LEAKS[usize::try_from(self.below(5)).unwrap_or(0)];
        // One in three has merely been superseded.
        let reason = if self.below(3) == 0 { Reason::Superseded } else { Reason::KeyCompromise };
        self.fault_in(millis, Fault::Revokes(machine, leaked, reason));
    }

    fn any_server(&self) -> usize {
        usize::try_from(self.below(self.control.count() as u64)).unwrap_or(0)
    }

    /// Everything is well again: whatever is broken is mended, and messages travel.
    pub fn heal(&mut self) {
        self.calm = true;
        for server in 0..self.control.count() {
            if self.is_far_off() {
                self.befall(Fault::ServerClockSteps(server, 0));
            }
            if !self.control.is_up(server) {
                self.befall(Fault::ServerStarts(server));
            }
        }
        for index in 0..self.machines.len() {
            self.befall(Fault::Rejoins(index));
            // What waits for who sleeps waits for the next second: woken before that, it would hear what comes now first.
            let second = self.next_second();
            let asleep = &mut self.machines[index].asleep;
            *asleep = asleep.map(|until| until.min(second));
            if self.machines[index].skew != 0 {
                self.befall(Fault::ClockSteps(index, 0));
            }
            if self.machines[index].life.is_none() {
                self.befall(Fault::Restarts(index));
            }
        }
        self.resume_all();
        self.heal_mesh();
        self.tell("all is well");
    }

    /// Ends every agent's process and starts it again.
    pub fn restart_agents(&mut self) {
        for index in 0..self.machines.len() {
            self.befall(Fault::Crashes(index));
            self.befall(Fault::Restarts(index));
        }
    }

    /// Sets the clock of one machine by so many microseconds from the true time.
    pub fn set_clock(&mut self, index: usize, skew: i64) {
        self.befall(Fault::ClockSteps(index, skew));
    }

    /// Stops every server for this long, without any other fault.
    pub fn outage(&mut self, span: Duration) {
        (0..self.control.count()).for_each(|server| self.befall(Fault::ServerStops(server)));
        self.run(span);
        (0..self.control.count()).for_each(|server| self.befall(Fault::ServerStarts(server)));
    }

    /// Stops one server.
    pub fn lose_server(&mut self, server: usize) {
        self.befall(Fault::ServerStops(server));
    }

    /// Starts it again.
    pub fn start_server(&mut self, server: usize) {
        self.befall(Fault::ServerStarts(server));
    }

    pub(crate) fn befall(&mut self, fault: Fault) {
        self.tell(&format!("{fault:?}"));
        self.mesh_before(fault);
        match fault {
            Fault::ServerStops(server) => self.stop_server(server),
            Fault::ServerStarts(server) if self.control.is_up(server) => {}
            Fault::ServerStarts(server) => self.control.start(server),
            Fault::CutFrom(index, server) => {
                self.break_lines(index, |at| at == Some(server));
                self.machines[index].cut_from = Some(server);
            }
            Fault::CutOff(index) => {
                self.break_lines(index, |_any| true);
                self.machines[index].cut_off = true;
            }
            Fault::Rejoins(index) => {
                let machine = &mut self.machines[index];
                (machine.cut_off, machine.cut_from) = (false, None);
            }
            Fault::Crashes(index) => self.crash(index),
            Fault::Restarts(index) if self.machines[index].life.is_some() => {}
            Fault::Restarts(index) => self.with(index, Machine::start),
            Fault::Sleeps(index, millis) => {
                let until = self.control.clock_now() + Duration::from_millis(millis);
                self.machines[index].asleep = Some(until);
                self.break_lines(index, |_any| true);
            }
            Fault::ClockSteps(index, skew) => self.step_clock(index, skew),
            Fault::ServerClockSteps(server, skew) => self.set_server_clock(server, skew),
            Fault::Changes(index) => self.change(index),
            Fault::Revokes(..)
            | Fault::Suspends(_)
            | Fault::Resumes(_)
            | Fault::Trims(_)
            | Fault::LosesARule
                if !self.control.any_up() => {}
            Fault::Revokes(index, leaked, reason) => {
                let number = self.below(self.workloads_named() as u64);
                let number = usize::try_from(number).unwrap_or(0);
                self.revoke_for(reason, index, number, leaked);
            }
            Fault::Suspends(index) => self.suspend(index, 0),
            Fault::Resumes(index) => self.resume(index, 0),
            Fault::Trims(server) => self.trim_rules(server),
            Fault::LosesARule => self.lose_a_rule(),
            Fault::Mesh(trouble) => self.trouble(trouble),
        }
        self.mesh_after(fault);
    }

    fn stop_server(&mut self, server: usize) {
        for key in self.control.stop(server) {
            let why = "the server went away".to_owned();
            self.hang_up((server, key), Code::Unavailable, why);
        }
    }

    /// Breaks the streams of a machine, those that are to such a server.
    fn break_lines(&mut self, index: usize, to: impl Fn(Option<usize>) -> bool) {
        for key in self.control.lines_of(index) {
            if to(self.control.server_of(key)) {
                self.break_line(key);
            }
        }
    }

    /// The agent's process ends.
    fn crash(&mut self, index: usize) {
        // The snapshot may be older than what was in force; revocations are written before anybody hears of them.
        let unwritten = self.below(2) == 0;
        let machine = &mut self.machines[index];
        machine.disk.crash(unwritten);
        machine.life = None;
        machine.lives += 1;
        machine.points.values_mut().for_each(crate::points::Point::lost_agent);
        for key in self.control.lines_of(index) {
            self.control.close(key);
        }
    }

    fn step_clock(&mut self, index: usize, skew: i64) {
        let now = skewed(self.control.clock_now(), skew);
        let machine = &mut self.machines[index];
        if skew < machine.skew {
            // Whoever sleeps on a clock that is set back is woken by it, and looks again.
            machine.wake = machine.wake.min(now);
        }
        machine.skew = skew;
        machine.ahead = machine.ahead.max(skew);
        machine.clock.set(now);
        self.sweep();
        self.schedule(index);
    }

    /// An operator changes something about this machine.
    fn change(&mut self, index: usize) {
        if !self.control.any_up() {
            return;
        }
        let number = usize::try_from(self.below(self.settings.workloads as u64 + 1)).unwrap_or(0);
        let workload_name: Name = name(index, number.max(1)).parse().expect("it is a name");
        let lifetime = self.lifetimes()[usize::try_from(self.below(3)).unwrap_or(0)];
        let lifetime = format!("{}s", lifetime.as_secs());
        let to = (index + 1) % self.settings.machines;
        let manifests = match self.below(4) {
            0 => return self.remove(Kind::Workload, &workload_name),
            1 if self.settings.services => {
                let policy_name = format!("p{index}").parse().expect("it is a name");
                return self.remove(Kind::Policy, &policy_name);
            }
            2 if self.settings.services => vec![policy(index, to)],
            _ => vec![workload(index, number.max(1), &lifetime)],
        };
        self.put_manifests(&manifests);
    }

    /// Puts manifests in force, and lets the snapshot follow some time later.
    pub(crate) fn put_manifests(&mut self, manifests: &[Value]) {
        let applied = self.control.call(async |steps| steps.apply(manifests).await);
        match applied {
            Ok(revision) => self.tell(&format!("revision {revision}")),
            // Planned on a snapshot that is behind, as when two operators write at once.
            Err(refused) => assert_eq!(refused.code, Code::StaleBase, "{refused}"),
        }
        self.advance_soon();
    }

    /// Removes a resource, and lets the snapshot follow some time later.
    pub fn remove(&mut self, kind: Kind, name: &Name) {
        let removed = self.control.call(async |steps| steps.remove(kind, name).await);
        match removed {
            Ok(revision) => self.tell(&format!("revision {revision} without {kind}/{name}")),
            Err(refused) => {
                let expected = matches!(refused.code, Code::NotFound | Code::StaleBase);
                assert!(expected, "{kind}/{name} is not removed: {refused}");
            }
        }
        self.advance_soon();
    }
}
