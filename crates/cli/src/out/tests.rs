use std::os::unix::fs::{FileTypeExt as _, chown, lchown, symlink};
use std::os::unix::process::CommandExt as _;
use std::process::Command;

use super::*;

fn mode(path: &Path) -> u32 {
    fs::symlink_metadata(path).unwrap().mode() & 0o777
}

#[test]
fn what_is_replaced_keeps_its_mode_and_its_owner_and_what_is_new_has_the_mode_that_it_should() {
    let place = tempfile::tempdir().unwrap();
    let at = |name: &str| place.path().join(name);
    write(&at("public"), New::Public, b"a").unwrap();
    write(&at("private"), New::Private, b"a").unwrap();
    assert_eq!(mode(&at("private")), 0o600);
    for kept in [0o640, 0o444, 0o600] {
        fs::set_permissions(at("public"), Permissions::from_mode(kept)).unwrap();
        // As root, who may give it to the group of whoever fetches it.
        let _only_root = chown(at("public"), Some(65534), Some(65534));
        let before = fs::metadata(at("public")).unwrap();
        write(&at("public"), New::Public, b"new").unwrap();
        let after = fs::metadata(at("public")).unwrap();
        assert_eq!(fs::read(at("public")).unwrap(), b"new");
        let of = |meta: &Metadata| (meta.mode(), meta.uid(), meta.gid());
        assert_eq!(of(&after), of(&before));
        assert_ne!(after.ino(), before.ino(), "it was replaced as a whole");
    }
}

#[test]
fn a_link_stays_and_leads_to_what_is_new() {
    let place = tempfile::tempdir().unwrap();
    let at = |name: &str| place.path().join(name);
    fs::create_dir(at("elsewhere")).unwrap();
    fs::write(at("elsewhere/file"), "old").unwrap();
    symlink("elsewhere/file", at("link")).unwrap();
    write(&at("link"), New::Public, b"new").unwrap();
    assert!(fs::symlink_metadata(at("link")).unwrap().is_symlink());
    assert_eq!(fs::read(at("elsewhere/file")).unwrap(), b"new");
    symlink("nowhere", at("astray")).unwrap();
    let error = write(&at("astray"), New::Public, b"new").unwrap_err();
    assert!(error.message.contains("a link to what is not there"), "{error}");
}

#[test]
fn a_pipe_and_a_device_are_written_to_and_stay() {
    let place = tempfile::tempdir().unwrap();
    let pipe = place.path().join("pipe");
    nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let reader = {
        let pipe = pipe.clone();
        std::thread::spawn(move || fs::read(pipe).unwrap())
    };
    write(&pipe, New::Public, b"through").unwrap();
    // Before the reader is waited for: where it was replaced, nothing ever comes through.
    assert!(fs::symlink_metadata(&pipe).unwrap().file_type().is_fifo());
    assert_eq!(reader.join().unwrap(), b"through");
    // Not the machine's own device: this test may run as root.
    let zero = place.path().join("zero");
    let kind = nix::sys::stat::SFlag::S_IFCHR;
    let device = nix::sys::stat::makedev(1, 5);
    if nix::sys::stat::mknod(&zero, kind, nix::sys::stat::Mode::S_IRWXU, device).is_ok()
        && OpenOptions::new().write(true).open(&zero).is_ok()
    {
        write(&zero, New::Public, b"through").unwrap();
        assert!(fs::symlink_metadata(&zero).unwrap().file_type().is_char_device());
    }
}

#[test]
fn a_folder_and_a_place_that_is_not_there_are_told_and_what_is_not_finished_leaves_the_old() {
    let place = tempfile::tempdir().unwrap();
    let error = write(place.path(), New::Public, b"a").unwrap_err();
    assert!(error.message.contains("is a directory"), "{error}");
    write(&place.path().join("no/such"), New::Public, b"a").unwrap_err();
    let file = place.path().join("file");
    fs::write(&file, "old").unwrap();
    let mut out = Out::open(&file, New::Public).unwrap();
    out.write_all(b"half").unwrap();
    drop(out);
    assert_eq!(fs::read(&file).unwrap(), b"old");
    assert_eq!(fs::read_dir(place.path()).unwrap().count(), 1);
}

/// `nobody` of every Debian.
const NOBODY: u32 = 65534;

#[test]
fn what_another_put_into_a_folder_that_others_write_to_gets_nothing_and_leads_nowhere() {
    let place = tempfile::tempdir().unwrap();
    let shared = place.path().join("shared");
    let at = |name: &str| shared.join(name);
    fs::create_dir(&shared).unwrap();
    fs::write(at("file"), "his").unwrap();
    nix::unistd::mkfifo(&at("pipe"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    let victim = place.path().join("victim");
    fs::write(&victim, "of the machine").unwrap();
    symlink(&victim, at("link")).unwrap();
    symlink(at("link"), place.path().join("mine")).unwrap();
    for name in ["file", "pipe", "link"] {
        if lchown(at(name), Some(NOBODY), Some(NOBODY)).is_err() {
            eprintln!("skipped: only root gives a file to another user");
            return;
        }
    }
    for mode in [0o1777, 0o777, 0o775] {
        fs::set_permissions(&shared, Permissions::from_mode(mode)).unwrap();
        for name in ["shared/file", "shared/pipe", "shared/link", "mine"] {
            let refused = write(&place.path().join(name), New::Private, b"secret").unwrap_err();
            assert_eq!(refused.exit, crate::exit::Exit::NotUnderstood);
            let said = "belongs to uid 65534, in a folder that others write to";
            assert!(refused.message.contains(said), "{name}: {refused}");
        }
        write(&at("new"), New::Private, b"secret").unwrap();
        write(&at("new"), New::Private, b"once more: it is ours").unwrap();
        assert_eq!(fs::metadata(at("new")).unwrap().uid(), 0);
    }
    assert_eq!(fs::read(at("file")).unwrap(), b"his");
    assert_eq!(fs::read(&victim).unwrap(), b"of the machine");
    // Whose folder it is decides what is in it.
    chown(&shared, Some(NOBODY), None).unwrap();
    write(&at("file"), New::Public, b"for him").unwrap();
    assert_eq!(fs::metadata(at("file")).unwrap().uid(), NOBODY);
    chown(&shared, Some(0), None).unwrap();
    fs::set_permissions(&shared, Permissions::from_mode(0o755)).unwrap();
    write(&at("file"), New::Public, b"for him").unwrap();
}

#[test]
fn what_is_private_is_not_for_everybody_though_a_file_before_it_was() {
    let place = tempfile::tempdir().unwrap();
    let file = place.path().join("plan.json");
    for (before, after) in [(0o644, 0o640), (0o666, 0o660), (0o600, 0o600), (0o640, 0o640)] {
        fs::write(&file, "old").unwrap();
        fs::set_permissions(&file, Permissions::from_mode(before)).unwrap();
        write(&file, New::Private, b"new").unwrap();
        assert_eq!(mode(&file), after);
    }
}

/// Where the test of another user is to write.
const PLACE: &str = "COUNTERSIGN_TEST_PLACE";
const THIS: &str = "out::tests::who_may_not_replace_a_file_writes_over_it_and_who_cannot_keep_its_group_lets_none_read";

#[test]
fn who_may_not_replace_a_file_writes_over_it_and_who_cannot_keep_its_group_lets_none_read() {
    let ours = tempfile::tempdir();
    let (kept, own) = match std::env::var_os(PLACE) {
        Some(place) => (Path::new(&place).join("kept"), Path::new(&place).join("own")),
        None => (ours.as_ref().unwrap().path().join("kept"), PathBuf::new()),
    };
    if std::env::var_os(PLACE).is_none() {
        fs::create_dir(&kept).unwrap();
        fs::write(kept.join("file"), "what was there is longer").unwrap();
        fs::set_permissions(kept.join("file"), Permissions::from_mode(0o646)).unwrap();
        fs::set_permissions(&kept, Permissions::from_mode(0o555)).unwrap();
        if nix::unistd::geteuid().is_root() {
            let place = kept.parent().unwrap();
            chown(kept.join("file"), Some(NOBODY), None).unwrap();
            let own = place.join("own");
            fs::create_dir(&own).unwrap();
            fs::write(own.join("file"), "for a group of which nobody is not").unwrap();
            fs::set_permissions(own.join("file"), Permissions::from_mode(0o640)).unwrap();
            chown(&own, Some(NOBODY), Some(NOBODY)).unwrap();
            fs::set_permissions(place, Permissions::from_mode(0o755)).unwrap();
            let mut nobody = Command::new("/proc/self/exe");
            nobody.args(["--exact", THIS]).env(PLACE, place).uid(NOBODY).gid(NOBODY);
            let ended = nobody.output().unwrap();
            assert!(ended.status.success(), "{}", String::from_utf8_lossy(&ended.stdout));
            assert_eq!(fs::read(own.join("file")).unwrap(), b"new", "it was that test");
            return;
        }
    }
    let before = fs::metadata(kept.join("file")).unwrap();
    let mut half = Out::open(&kept.join("file"), New::Private).unwrap();
    half.write_all(b"half").unwrap();
    drop(half);
    assert_eq!(fs::metadata(kept.join("file")).unwrap().len(), before.len());
    write(&kept.join("file"), New::Private, b"new").unwrap();
    assert_eq!(fs::read(kept.join("file")).unwrap(), b"new");
    assert_eq!(fs::metadata(kept.join("file")).unwrap().ino(), before.ino());
    assert_eq!(mode(&kept.join("file")), 0o640);
    if own.exists() {
        write(&own.join("file"), New::Private, b"new").unwrap();
        assert_eq!(mode(&own.join("file")), 0o600);
    }
    fs::set_permissions(&kept, Permissions::from_mode(0o755)).ok();
}

#[test]
fn what_a_process_has_open_already_is_written_to_at_its_end() {
    use std::os::fd::AsRawFd as _;
    let place = tempfile::tempdir().unwrap();
    let file = place.path().join("file");
    let mut open = OpenOptions::new().append(true).create(true).open(&file).unwrap();
    open.write_all(b"before, ").unwrap();
    for folder in ["/dev/fd", "/proc/self/fd"] {
        let named = Path::new(folder).join(open.as_raw_fd().to_string());
        write(&named, New::Public, b"through, ").unwrap();
    }
    open.write_all(b"after").unwrap();
    assert_eq!(fs::read(&file).unwrap(), b"before, through, through, after");
}
