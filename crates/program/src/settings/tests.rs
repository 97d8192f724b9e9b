use clap::{Args as _, FromArgMatches as _};

use super::*;
use crate::exit::Exit;

#[derive(Clone, Debug)]
struct Trial;

impl Program for Trial {
    const NAME: &'static str = "trial";
    const FIELDS: &'static [Field] = &[
        Field::one("trial-port", "PORT", "A port").or("1"),
        Field::many("trial-name", "NAME", "Names"),
        Field::switch("trial-switch", "A switch"),
        Field::one("trial-token", "TOKEN", "A secret").secret(),
    ];
}

/// Resolves flags and a file. The environment is not touched: tests share it.
fn resolve(arguments: &[&str], file: Option<&str>) -> Result<Resolved, Failure> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("trial.toml");
    let mut all = vec!["trial"];
    if let Some(text) = file {
        std::fs::write(&path, text).unwrap();
        all.extend(["--config", path.to_str().unwrap()]);
    }
    all.extend(arguments);
    let command = Settings::<Trial>::augment_args(clap::Command::new("trial"));
    let matches = command.try_get_matches_from(all).unwrap();
    Settings::<Trial>::from_arg_matches(&matches).unwrap().resolve()
}

#[test]
fn a_flag_wins_over_the_file_and_the_file_over_the_default() {
    let port =
        |arguments: &[&str], file| resolve(arguments, file).unwrap().required::<u16>("trial-port");
    assert_eq!(port(&[], None), Some(1));
    assert_eq!(port(&[], Some("trial_port = 2")), Some(2));
    assert_eq!(port(&["--trial-port", "3"], Some("trial_port = 2")), Some(3));
}

#[test]
fn the_environment_stands_between_flag_and_file() {
    // Every test binary has this variable, and no setting of ours uses it.
    let field = Field::one("trial-port", "PORT", "A port");
    assert_eq!(field.variable(), "COUNTERSIGN_TRIAL_PORT");
    let many = Field::many("trial-name", "NAME", "Names");
    assert_eq!(many.split(" a  b "), ["a", "b"]);
}

#[test]
fn lists_and_switches_mean_the_same_everywhere() {
    let mut flags =
        resolve(&["--trial-name", "a", "--trial-name", "b", "--trial-switch"], None).unwrap();
    let mut file = resolve(&[], Some("trial_name = ['a', 'b']\ntrial_switch = true")).unwrap();
    for resolved in [&mut flags, &mut file] {
        assert_eq!(resolved.list::<String>("trial-name"), ["a", "b"]);
        assert!(resolved.switch("trial-switch"));
        resolved.finish().unwrap();
    }
    assert!(!resolve(&[], Some("trial_switch = false")).unwrap().switch("trial-switch"));
}

#[test]
fn every_problem_is_told_at_once_with_its_place() {
    let text = "trial_prot = 5\ntrial_port = 'x'\ntrial_name = [1.5]\ntrial_switch = 'yes'\n";
    let mut resolved = resolve(&[], Some(text)).unwrap();
    assert_eq!(resolved.required::<u16>("trial-port"), None);
    assert!(!resolved.switch("trial-switch"));
    let failure = resolved.finish().unwrap_err();
    assert_eq!(failure.exit, Exit::NotUnderstood);
    for part in [
        "trial.toml:1: `trial_prot` is not a setting",
        "trial.toml:2: `trial_port`",
        "trial.toml:3: `trial_name` is a number",
        "trial.toml:4: `trial_switch`",
    ] {
        assert!(failure.message.contains(part), "{part}: {}", failure.message);
    }
}

#[test]
fn a_file_that_is_no_toml_is_told_with_its_line() {
    let failure = resolve(&[], Some("trial_port = 1\n= 2\n")).unwrap_err();
    assert!(failure.message.contains("trial.toml:2: not valid TOML"), "{}", failure.message);
    let twice = resolve(&[], Some("trial_port = 1\ntrial_port = 2\n")).unwrap_err();
    assert!(twice.message.contains("trial.toml:2"), "{}", twice.message);
}

#[test]
fn a_missing_file_is_told() {
    let command = Settings::<Trial>::augment_args(clap::Command::new("trial"));
    let matches = command.try_get_matches_from(["trial", "--config", "/no/such"]).unwrap();
    let failure = Settings::<Trial>::from_arg_matches(&matches).unwrap().resolve().unwrap_err();
    assert!(failure.message.contains("/no/such"), "{}", failure.message);
}

#[test]
fn secrets_are_neither_shown_nor_remembered() {
    let mut resolved = resolve(&["--trial-token", "s3cr3t"], None).unwrap();
    assert_eq!(resolved.optional::<u16>("trial-token"), None, "it is no number");
    let failure = resolved.finish().unwrap_err();
    assert!(!failure.message.contains("s3cr3t"), "{}", failure.message);

    let folder = tempfile::tempdir().unwrap();
    remember(folder.path(), "trial", &resolved);
    let remembered = std::fs::read_to_string(folder.path().join("trial.settings.json")).unwrap();
    assert!(remembered.contains("trial_token") && !remembered.contains("s3cr3t"), "{remembered}");
}
