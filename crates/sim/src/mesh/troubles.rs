//! What befalls callers and instances beside what befalls their machines.

use std::time::Duration;

use countersign_api::resource::Kind;
use countersign_proxy::retire::announced;

use crate::chaos::Fault;
use crate::manifests::{call_policy, call_policy_name};
use crate::world::World;

/// What befalls a caller, an instance, or what is between them.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Trouble {
    Parts(usize, usize),
    Joins(usize, usize),
    /// At once: nobody hears of it but by its silence.
    InstanceStops(usize),
    InstanceStarts(usize),
    /// As for a new version: it says that it closes what is open, and takes what is new.
    InstanceTurnsOver(usize),
    Forbids(usize),
    Permits(usize),
}

impl World {
    /// Lets troubles befall them at random for this long.
    pub(crate) fn plague_mesh(&mut self, span: Duration) {
        if !self.mesh.is_there() {
            return;
        }
        let longest = self.settings.pause_max;
        let end = u64::try_from(span.as_millis()).unwrap_or(u64::MAX);
        let draw = |bound: usize| usize::try_from(self.mesh.below(bound as u64)).unwrap_or(0);
        let mut troubles = Vec::new();
        let mut at = 0;
        loop {
            at += 500 + self.mesh.below(longest);
            if end <= at {
                break;
            }
            let (from, instance) = (draw(self.mesh.callers.len()), draw(self.mesh.instances.len()));
            let later = at + 200 + self.mesh.below(longest * 3);
            let pair = match draw(8) {
                0..3 => [Trouble::Parts(from, instance), Trouble::Joins(from, instance)],
                3..5 => [Trouble::InstanceStops(instance), Trouble::InstanceStarts(instance)],
                5..7 => {
                    [Trouble::InstanceTurnsOver(instance), Trouble::InstanceTurnsOver(instance)]
                }
                _ => [Trouble::Forbids(from), Trouble::Permits(from)],
            };
            troubles.extend([at, later].into_iter().zip(pair));
        }
        for (at, trouble) in troubles {
            self.fault_in(at, Fault::Mesh(trouble));
        }
    }

    /// Everything is well again.
    pub(crate) fn heal_mesh(&mut self) {
        for instance in 0..self.mesh.instances.len() {
            self.befall(Fault::Mesh(Trouble::InstanceStarts(instance)));
            for from in 0..self.mesh.callers.len() {
                self.befall(Fault::Mesh(Trouble::Joins(from, instance)));
            }
        }
        for from in 0..self.mesh.callers.len() {
            self.befall(Fault::Mesh(Trouble::Permits(from)));
        }
    }

    pub(crate) fn trouble(&mut self, trouble: Trouble) {
        match trouble {
            Trouble::Parts(from, instance) => {
                self.mesh.apart.insert((from, instance));
                self.mesh.report.parted += 1;
            }
            Trouble::Joins(from, instance) => {
                self.mesh.apart.remove(&(from, instance));
            }
            Trouble::InstanceStops(instance) => {
                self.mesh.instances[instance].up = false;
                self.mesh.report.stopped += 1;
                for from in 0..self.mesh.callers.len() {
                    let stream = self.mesh.callers[from].stream.as_ref();
                    if stream.is_some_and(|stream| stream.instance == instance) {
                        self.end_stream(from, "its instance stopped");
                    }
                }
                let callers = &self.mesh.callers;
                for line in self.mesh.lines.values_mut() {
                    line.gone |= callers[line.from].ways[line.address].instance == instance;
                }
            }
            Trouble::InstanceStarts(instance) => self.mesh.instances[instance].up = true,
            Trouble::InstanceTurnsOver(instance) => {
                let now = self.machines[self.mesh.instances[instance].machine].now();
                let callers = &self.mesh.callers;
                for line in self.mesh.lines.values_mut() {
                    if callers[line.from].ways[line.address].instance == instance {
                        line.announces = line.announces.min(announced(now, now));
                        line.foreseen = false;
                    }
                }
                self.mesh.report.turned_over += 1;
                (0..self.mesh.callers.len()).for_each(|from| self.disturbed(from, instance));
            }
            Trouble::Forbids(from) if self.control.any_up() => {
                let name = call_policy_name(from).parse().expect("it is a name");
                self.remove(Kind::Policy, &name);
                self.mesh.report.forbidden += 1;
            }
            Trouble::Permits(from) if self.control.any_up() => {
                self.put_manifests(&[call_policy(from)]);
                self.advance_soon();
            }
            Trouble::Forbids(_) | Trouble::Permits(_) => {}
        }
    }

    /// What a fault puts in the way of re-proofs, which may end a stream with the fault itself.
    pub(crate) fn mesh_before(&mut self, fault: Fault) {
        let (why, whose) = match fault {
            Fault::ClockSteps(index, _) => ("a clock", index),
            Fault::Sleeps(index, _) => ("sleep", index),
            _ => return,
        };
        self.hinder(why, |from, to| from == whose || to == whose);
    }

    /// What a fault changes for callers.
    pub(crate) fn mesh_after(&mut self, fault: Fault) {
        if !self.mesh.is_there() {
            return;
        }
        match fault {
            Fault::ClockSteps(index, _) => self.clock_stepped(index),
            Fault::Sleeps(..) | Fault::Mesh(_) | Fault::CutOff(_) | Fault::Rejoins(_) => {}
            Fault::ServerStops(_)
            | Fault::ServerStarts(_)
            | Fault::CutFrom(..)
            | Fault::Crashes(_)
            | Fault::Restarts(_)
            | Fault::ServerClockSteps(..)
            | Fault::Changes(_)
            | Fault::Revokes(..)
            | Fault::Suspends(_)
            | Fault::Resumes(_)
            | Fault::Trims(_)
            | Fault::LosesARule => return,
        }
        self.note_all_ways();
    }

    /// The points of a machine were told something.
    pub(crate) fn look_at_mesh(&mut self, index: usize) {
        if !self.mesh.is_there() {
            return;
        }
        self.check_mesh();
        let hosts = self.mesh.instances.iter().any(|instance| instance.machine == index);
        if hosts {
            self.note_all_ways();
        } else {
            self.note_ways(index);
        }
    }

    /// What must be true after everything that happens.
    pub(crate) fn check_mesh(&mut self) {
        if self.mesh.is_there() {
            self.tend_lines();
            self.check_streams();
        }
    }

    /// What must be true once everything is well.
    pub(crate) fn check_mesh_converged(&mut self) {
        self.note_all_ways();
        self.check_streams_stand();
    }
}
