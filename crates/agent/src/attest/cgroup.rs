//! What a process's control group says: the systemd unit and the container that it belongs to.

/// Unit and container of a process.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Membership {
    pub(super) unit: Option<String>,
    pub(super) container: Option<String>,
}

/// Reads the text of `/proc/PID/cgroup`.
///
/// Only the topmost unit and the topmost container count: what lies below may have been delegated to a user, who can
/// create groups of any name there. So nothing below `user.slice` says anything, and no container below a service.
pub(super) fn membership(text: &str) -> Membership {
    let unified = text.lines().find_map(|line| line.strip_prefix("0::"));
    let systemd =
        text.lines().find_map(|line| line.split_once(":name=systemd:").map(|(_, path)| path));
    let path = unified.filter(|path| *path != "/").or(systemd).or(unified).unwrap_or("/");
    let parts: Vec<&str> = path
        .split('/')
        .filter(|part| !part.is_empty())
        .take_while(|part| *part != "user.slice")
        .collect();
    Membership {
        unit: parts.iter().find(|part| part.ends_with(".service")).map(|part| (*part).to_owned()),
        container: parts
            .iter()
            .take_while(|part| !part.ends_with(".service"))
            .find_map(|part| container(part)),
    }
}

/// The 64 hexadecimal digits in a group's name such as `docker-<id>.scope`, `cri-containerd-<id>.scope` or `<id>`.
fn container(part: &str) -> Option<String> {
    let name = part.strip_suffix(".scope").unwrap_or(part);
    let id = name.rsplit('-').next().unwrap_or(name);
    let hex = id.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    (id.len() == 64 && hex).then(|| id.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

    #[track_caller]
    fn read(text: &str, unit: Option<&str>, container: Option<&str>) {
        let expected =
            Membership { unit: unit.map(str::to_owned), container: container.map(str::to_owned) };
        assert_eq!(membership(text), expected, "reading {text:?}");
    }

    #[test]
    fn unit_and_container_are_found() {
        read("0::/system.slice/payments.service\n", Some("payments.service"), None);
        read(&format!("0::/system.slice/docker-{ID}.scope\n"), None, Some(ID));
        read(&format!("0::/kubepods.slice/pod1.slice/cri-containerd-{ID}.scope"), None, Some(ID));
        read(&format!("12:pids:/docker/{ID}\n1:name=systemd:/docker/{ID}\n0::/\n"), None, Some(ID));
        read("0::/\n", None, None);
        read("", None, None);
    }

    #[test]
    fn a_user_cannot_name_a_group_of_its_own_after_a_unit() {
        read("0::/user.slice/user-1000.slice/user@1000.service/payments.service", None, None);
        read(&format!("0::/user.slice/user-1000.slice/docker-{ID}.scope"), None, None);
        read("0::/system.slice/ci.service/payments.service", Some("ci.service"), None);
        let text = format!("0::/system.slice/ci.service/docker-{ID}.scope");
        read(&text, Some("ci.service"), None);
    }
}
