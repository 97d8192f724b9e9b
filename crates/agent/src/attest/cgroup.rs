//! What a process's control group says: the systemd unit and the container that it belongs to.

use std::fmt;

/// Unit and container of a process.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Membership {
    /// The service unit, as systemd names it.
    pub unit: Option<String>,
    /// The container's 64 hexadecimal digits.
    pub container: Option<String>,
}

/// A text of which it cannot be told what the process belongs to. It is never taken for "belongs to nothing".
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadGroup {
    /// Not of the form that the kernel writes.
    #[error("the control group's line {line} is not of the form `NUMBER:CONTROLLERS:/PATH`")]
    Malformed {
        /// Which, from 1.
        line: usize,
    },
    /// One group is told twice.
    #[error("the control group is told twice for one hierarchy")]
    Twice,
    /// The path is reckoned from a place below the top.
    #[error("the process lies outside of the control groups that the agent can see")]
    Outside,
    /// The group is gone, so that another of the name can exist.
    #[error("the control group was deleted")]
    Deleted,
    /// Version 1 only, without systemd's hierarchy: every controller has a path of its own.
    #[error("the control groups of the process's controllers lie in different units or containers")]
    Different,
}

/// What runs containers, as it begins the names of their groups.
const RUNTIMES: [&str; 6] = ["docker", "cri-containerd", "crio", "libpod", "nerdctl", "containerd"];
/// What the kernel writes behind the path of a group that is gone.
const DELETED: &str = " (deleted)";

/// Reads the text of `/proc/PID/cgroup`.
///
/// A group says something only where nobody but systemd or a runtime makes groups: what lies below any other may have been
/// delegated to a user or to a whole system in a container, which can create groups of any name there. So a unit is a service
/// directly under slices, and a container a scope directly under slices, or a group right below one that a runtime itself
/// makes at the top. Nothing below `user.slice`, a session or a group of another name says anything, no unit below a
/// container, no container below a service.
///
/// # Errors
/// When the text does not say it, or not clearly.
pub fn membership(text: &str) -> Result<Membership, BadGroup> {
    let hierarchies = hierarchies(text)?;
    let named = |name: &str| hierarchies.iter().find(|found| found.controllers == name);
    // Version 2 counts wherever it is in use. Where it is mounted beside version 1 only, everybody is at its top.
    let unified = named("").filter(|found| !found.is_top());
    if let Some(one) = unified.or_else(|| named("name=systemd")) {
        return one.membership();
    }
    let mut told = hierarchies.iter().filter(|found| !found.is_top()).map(Hierarchy::membership);
    let first = told.next().transpose()?.unwrap_or_default();
    for other in told {
        if other? != first {
            return Err(BadGroup::Different);
        }
    }
    Ok(first)
}

/// One line: a hierarchy, and where in it the process lies.
struct Hierarchy<'a> {
    controllers: &'a str,
    path: &'a str,
}

impl fmt::Debug for Hierarchy<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.controllers, self.path)
    }
}

fn hierarchies(text: &str) -> Result<Vec<Hierarchy<'_>>, BadGroup> {
    let mut found: Vec<Hierarchy<'_>> = Vec::new();
    // The kernel ends every line; one that has no end was cut off.
    for (index, line) in text.split_inclusive('\n').enumerate() {
        let one = line.strip_suffix('\n').and_then(hierarchy);
        let one = one.ok_or(BadGroup::Malformed { line: index + 1 })?;
        if found.iter().any(|before| before.controllers == one.controllers) {
            return Err(BadGroup::Twice);
        }
        found.push(one);
    }
    Ok(found)
}

fn hierarchy(line: &str) -> Option<Hierarchy<'_>> {
    let (number, rest) = line.split_once(':')?;
    // A path may hold colons; names of controllers and of hierarchies cannot.
    let (controllers, path) = rest.split_once(':')?;
    let digits = !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit());
    // What is not UTF-8 was replaced while it was read, and could be taken for another name.
    let readable = !path.contains(char::REPLACEMENT_CHARACTER) && !path.contains(char::is_control);
    let version_2 = number == "0";
    let valid = digits && path.starts_with('/') && readable && version_2 == controllers.is_empty();
    valid.then_some(Hierarchy { controllers, path })
}

impl Hierarchy<'_> {
    fn is_top(&self) -> bool {
        self.path == "/"
    }

    fn membership(&self) -> Result<Membership, BadGroup> {
        if self.path.ends_with(DELETED) {
            return Err(BadGroup::Deleted);
        }
        let parts = || self.path.split('/').filter(|part| !part.is_empty());
        if parts().any(|part| part == "..") {
            return Err(BadGroup::Outside);
        }
        let parts: Vec<&str> = parts().collect();
        // Within `user.slice` users have managers of their own, which make slices, too.
        let is_slice = |part: &&&str| part.ends_with(".slice") && **part != "user.slice";
        let (slices, rest) = parts.split_at(parts.iter().take_while(is_slice).count());
        let Some(first) = rest.first() else { return Ok(Membership::default()) };
        let of_runtime = || if slices.is_empty() { below_a_runtimes_own(rest) } else { None };
        if let Some(id) = scope_of_container(first).or_else(of_runtime) {
            return Ok(Membership { container: Some(id.to_owned()), unit: None });
        }
        let unit = first.ends_with(".service").then(|| unescaped(first).to_owned());
        Ok(Membership { container: None, unit })
    }
}

/// A unit's name in place of its group's: systemd writes `_` before names that the kernel could mistake.
fn unescaped(part: &str) -> &str {
    part.strip_prefix('_').unwrap_or(part)
}

/// The id in the name of a group that lies where systemd makes them: `docker-ID.scope` and the like, or
/// `SLICE:cri-containerd:ID`, which is what becomes of a slice where the runtime does not ask systemd.
fn scope_of_container(part: &str) -> Option<&str> {
    if let Some((slice, named)) = part.split_once(':') {
        let (runtime, id) = named.split_once(':')?;
        let ours = slice.ends_with(".slice") && RUNTIMES.contains(&runtime);
        return Some(id).filter(|id| ours && is_id(id));
    }
    id_of_runtime(part.strip_suffix(".scope")?)
}

/// The id of a container whose runtime makes its groups itself, without systemd: by the path from the top.
fn below_a_runtimes_own<'a>(path: &[&'a str]) -> Option<&'a str> {
    let group = match path {
        // The kubelet's top may lie in a group of its own, as `kind` has it.
        ["kubelet", "kubepods", below @ ..] | ["kubepods", below @ ..] => match below {
            ["burstable" | "besteffort", pod, group, ..] | [pod, group, ..]
                if pod.starts_with("pod") =>
            {
                group
            }
            _ => return None,
        },
        // Podman has the containers of a pod in a group that is named by the pod's id.
        ["libpod_parent", pod, group, ..] if is_id(pod) => group,
        // Docker; CRI-O and Podman; and containerd, by its namespaces: its own, and that of Kubernetes outside of pods.
        ["docker" | "crio" | "libpod_parent" | "default" | "k8s.io", group, ..] => group,
        _ => return None,
    };
    if is_id(group) { Some(group) } else { id_of_runtime(group) }
}

/// The id in `docker-ID` and the like.
fn id_of_runtime(name: &str) -> Option<&str> {
    let (runtime, id) = name.rsplit_once('-')?;
    Some(id).filter(|id| RUNTIMES.contains(&runtime) && is_id(id))
}

fn is_id(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";
    const OTHER: &str = "fedcba9876543210fedcba9876543210fedcba9876543210fedcba9876543210";

    #[track_caller]
    fn read(text: &str, unit: Option<&str>, container: Option<&str>) {
        let expected =
            Membership { unit: unit.map(str::to_owned), container: container.map(str::to_owned) };
        assert_eq!(membership(text), Ok(expected), "reading {text:?}");
    }

    #[track_caller]
    fn in_unit(path: &str, unit: &str) {
        read(&format!("0::{path}\n"), Some(unit), None);
    }

    #[track_caller]
    fn in_container(path: &str) {
        read(&format!("0::{path}\n"), None, Some(ID));
    }

    #[track_caller]
    fn in_nothing(path: &str) {
        read(&format!("0::{path}\n"), None, None);
    }

    #[track_caller]
    fn unclear(text: &str, why: BadGroup) {
        assert_eq!(membership(text), Err(why), "reading {text:?}");
    }

    #[test]
    fn unit_of_a_service_is_found_under_its_slices() {
        in_unit("/system.slice/payments.service", "payments.service");
        in_unit("/system.slice/system-getty.slice/getty@tty1.service", "getty@tty1.service");
        in_unit("/payments.service", "payments.service");
        in_unit("/system.slice/payments.service/worker/3", "payments.service");
        in_unit(r"/system.slice/a\x2db.service", r"a\x2db.service");
        in_unit("/system.slice/__odd.service", "_odd.service");
        in_nothing("/");
        in_nothing("/init.scope");
        in_nothing("/system.slice");
        in_nothing("/system.slice/payments.socket");
        read("", None, None);
    }

    #[test]
    fn container_of_each_usual_runtime_is_found() {
        in_container(&format!("/system.slice/docker-{ID}.scope"));
        in_container(&format!("/docker/{ID}"));
        in_container(&format!("/machine.slice/libpod-{ID}.scope/container"));
        in_container(&format!("/libpod_parent/libpod-{ID}"));
        let pod = "kubepods-burstable-pod3f1c_9.slice";
        in_container(&format!("/kubepods.slice/{pod}/cri-containerd-{ID}.scope"));
        in_container(&format!("/kubepods.slice/{pod}/crio-{ID}.scope"));
        in_container(&format!("/kubepods/besteffort/pod3f1c-9/{ID}"));
        in_container(&format!("/kubepods/besteffort/pod3f1c-9/crio-{ID}"));
        in_container(&format!("/{pod}:cri-containerd:{ID}"));
        in_container(&format!("/kubepods/pod3f1c-9/{ID}"));
        in_container(&format!("/kubepods/burstable/pod3f1c-9/{ID}/inner"));
        in_container(&format!("/kubelet/kubepods/besteffort/pod3f1c-9/{ID}"));
        in_container(&format!(
            "/kubelet.slice/kubelet-kubepods.slice/kubelet-{pod}/cri-containerd-{ID}.scope"
        ));
        in_container(&format!("/crio/crio-{ID}"));
        in_container(&format!("/machine.slice/machine-libpod_pod_{OTHER}.slice/libpod-{ID}.scope"));
        // By the container, not by its pod.
        in_container(&format!("/libpod_parent/{OTHER}/libpod-{ID}"));
        in_container(&format!("/default/{ID}"));
        in_container(&format!("/k8s.io/{ID}"));
    }

    /// Groups that whoever made the first part can have made, or can have delegated.
    #[test]
    fn no_group_below_one_that_neither_systemd_nor_a_runtime_makes_is_a_container() {
        let tops = ["lxc.payload.guest", "lxc/guest", "lxc/100/ns", "jobs-of-alice", "init"];
        let tops = tops.into_iter().chain(["custom", "docker2", "kubepods2", "kubelet/jobs"]);
        for top in tops {
            for group in [
                format!("docker-{ID}.scope"),
                ID.to_owned(),
                format!("docker-{ID}"),
                format!("docker/{ID}"),
                format!("libpod_parent/libpod-{ID}"),
                format!("default/{ID}"),
                format!("system.slice/docker-{ID}.scope"),
                format!("kubepods.slice/kubepods-pod1.slice/cri-containerd-{ID}.scope"),
                format!("kubepods/besteffort/pod3f1c-9/{ID}"),
                format!("kubepods-pod1.slice:cri-containerd:{ID}"),
            ] {
                in_nothing(&format!("/{top}/{group}"));
            }
        }
        // Nor below groups that stand where a runtime's would, without being of its making.
        in_nothing(&format!("/docker/jobs/{ID}"));
        in_nothing(&format!("/docker/jobs/docker/{ID}"));
        in_nothing(&format!("/kubepods/jobs/pod3f1c-9/{ID}"));
        in_nothing(&format!("/kubepods/besteffort/jobs/{ID}"));
        in_nothing(&format!("/system.slice/docker/{ID}"));
        in_nothing(&format!("/system.slice/jobs/docker-{ID}.scope"));
        in_nothing(&format!("/{ID}"));
    }

    #[test]
    fn version_1_is_read_from_systemds_hierarchy_and_version_2_before_it() {
        let both = format!("12:pids:/\n1:name=systemd:/docker/{ID}\n0::/\n");
        read(&both, None, Some(ID));
        read("1:name=systemd:/\n0::/system.slice/a.service\n", Some("a.service"), None);
        read("1:name=systemd:/b.service\n0::/system.slice/a.service\n", Some("a.service"), None);
        let without_systemd =
            format!("3:cpu,cpuacct:/docker/{ID}\n2:pids:/docker/{ID}\n1:blkio:/\n");
        read(&without_systemd, None, Some(ID));
        let different = format!("2:pids:/docker/{ID}\n1:memory:/docker/{OTHER}\n");
        unclear(&different, BadGroup::Different);
        unclear(&format!("2:pids:/docker/{ID}\n1:memory:/jobs\n"), BadGroup::Different);
    }

    #[test]
    fn user_cannot_name_a_group_of_its_own_after_a_unit_or_a_container() {
        in_nothing("/user.slice/user-1000.slice/user@1000.service/payments.service");
        in_nothing("/user.slice/user-1000.slice/user@1000.service/app.slice/payments.service");
        in_nothing(&format!("/user.slice/user-1000.slice/docker-{ID}.scope"));
        in_nothing(&format!("/user.slice/user-1000.slice/session-4.scope/{ID}"));
        in_nothing("/system.slice/session-4.scope/payments.service");
        in_nothing(&format!("/init.scope/docker-{ID}.scope"));
    }

    #[test]
    fn service_cannot_name_a_group_of_its_own_after_another_unit_or_a_container() {
        in_unit("/system.slice/ci.service/payments.service", "ci.service");
        in_unit("/system.slice/ci.service/system.slice/payments.service", "ci.service");
        in_unit(&format!("/system.slice/ci.service/docker-{ID}.scope"), "ci.service");
        in_unit(&format!("/system.slice/ci.service/{ID}"), "ci.service");
    }

    #[test]
    fn container_cannot_name_a_group_of_its_own_after_a_unit_or_another_container() {
        in_container(&format!("/system.slice/docker-{ID}.scope/payments.service"));
        in_container(&format!("/system.slice/docker-{ID}.scope/system.slice/payments.service"));
        in_container(&format!("/docker/{ID}/docker/{OTHER}"));
        in_container(&format!("/docker/{ID}/system.slice/docker-{OTHER}.scope"));
        // A whole system in a container that has no id of this form: its units are not this machine's.
        in_nothing("/lxc.payload.guest/system.slice/payments.service");
        in_nothing("/lxc/guest/payments.service");
        in_nothing(r"/machine.slice/systemd-nspawn_x.scope/payload/system.slice/payments.service");
    }

    #[test]
    fn names_that_only_resemble_those_of_runtimes_are_no_containers() {
        for name in [
            // The one that watches over the container, on the machine itself.
            format!("libpod-conmon-{ID}.scope"),
            format!("crio-conmon-{ID}.scope"),
            format!("evil-{ID}"),
            format!("evil-{ID}.scope"),
            format!("-{ID}"),
            format!("docker-{ID}.slice"),
            format!("docker-{ID}.scope.d"),
            format!("docker-{ID}x"),
            format!("docker-{}", &ID[1..]),
            format!("docker-{}", ID.to_uppercase()),
            format!("{ID}.scope"),
            format!("docker:{ID}"),
            format!("a.slice:evil:{ID}"),
            format!("pod:cri-containerd:{ID}"),
            format!("a.slice:cri-containerd:{ID}:x"),
            format!(" {ID}"),
        ] {
            in_nothing(&format!("/{name}"));
        }
        in_nothing("/system.slice/payments.service.d");
        in_nothing("/system.slice/payments.Service");
    }

    #[test]
    fn what_is_not_clearly_told_is_an_error_and_never_nothing() {
        unclear("0::/../payments.service\n", BadGroup::Outside);
        unclear("0::/..\n", BadGroup::Outside);
        unclear("0::/system.slice/payments.service (deleted)\n", BadGroup::Deleted);
        unclear("0::/a\n0::/b\n", BadGroup::Twice);
        unclear("1:pids:/a\n2:pids:/b\n", BadGroup::Twice);
        for first in [
            "0::/system.slice/payments.service",
            "0::system.slice/payments.service\n",
            "0::\n",
            "0:/\n",
            ":pids:/\n",
            "x::/\n",
            "1::/\n",
            "0:pids:/\n",
            "-1:pids:/\n",
            "\n",
            "0::/a\u{fffd}.service\n",
            "0::/a\r\n",
        ] {
            unclear(first, BadGroup::Malformed { line: 1 });
        }
        unclear("1:pids:/\nrest of a name.service\n", BadGroup::Malformed { line: 2 });
    }
}
