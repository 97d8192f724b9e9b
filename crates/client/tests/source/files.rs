//! Certificate files that something else renews.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use countersign::{Authorization, FileOptions, Source, SourceFault, Status, Topic};
use countersign_identity::{Clock, SimClock, Timestamp};
use countersign_pki::Chain;
use tempfile::TempDir;

use crate::realm::{Realm, Svid};
use crate::world::now;

struct Files {
    folder: TempDir,
    realm: Realm,
    clock: Arc<SimClock>,
}

impl Files {
    fn new() -> Self {
        let folder = tempfile::Builder::new().prefix("cs").tempdir_in("/tmp").unwrap();
        let clock = Arc::new(SimClock::new(now()));
        let realm = Realm::new("shop.example", 1, clock.now());
        Self { folder, realm, clock }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn svid(&self) -> Svid {
        self.realm.svid("/web", self.clock.now(), 3600)
    }

    fn write(&self, svid: &Svid) {
        replace(&self.path("key.pem"), &key_pem(svid));
        replace(&self.path("chain.pem"), &chain_pem(&svid.chain));
        replace(&self.path("bundle.pem"), &self.realm.bundle().to_pem());
    }

    fn options(&self) -> FileOptions {
        let paths = ["chain.pem", "key.pem", "bundle.pem"].map(|name| self.path(name));
        let [chain, key, bundle] = paths;
        FileOptions {
            authorization: Authorization::AllowIds(Vec::new()),
            clock: self.clock.clone(),
            ..FileOptions::at(chain, key, bundle)
        }
    }

    async fn source(&self) -> Source {
        Source::from_files(self.options()).await.unwrap()
    }

    /// Lets seconds pass until the status is so.
    async fn until(&self, source: &Source, mut so: impl FnMut(&Status) -> bool) -> Status {
        let mut changes = source.status_changes();
        loop {
            self.clock.advance(Duration::from_secs(1));
            let wait = changes.wait_for(&mut so);
            if let Ok(status) = tokio::time::timeout(Duration::from_millis(20), wait).await {
                return status.unwrap().clone();
            }
        }
    }
}

fn chain_pem(chain: &Chain) -> String {
    chain.pem()
}

fn key_pem(svid: &Svid) -> String {
    let key = countersign_pki::PrivateKey::from_pkcs8(&svid.pkcs8).unwrap();
    countersign_pki::encode_private_key(&key).to_string()
}

/// As careful tools do.
fn replace(path: &Path, text: &str) {
    let new = path.with_extension("new");
    fs::write(&new, text).unwrap();
    fs::set_permissions(&new, fs::Permissions::from_mode(0o600)).unwrap();
    fs::rename(new, path).unwrap();
}

fn shows(status: &Status, svid: &Svid) -> bool {
    status.identity.as_ref().is_some_and(|own| own.serial == Some(svid.serial()))
}

#[tokio::test]
async fn replaced_files_are_shown() {
    let files = Files::new();
    let first = files.svid();
    files.write(&first);
    let source = files.source().await;
    source.ready().await.unwrap();
    assert!(shows(&source.status(), &first));
    for _ in 0..3 {
        let next = files.svid();
        files.write(&next);
        files.until(&source, |status| shows(status, &next)).await;
    }
}

#[tokio::test]
async fn a_folder_switched_by_its_link_is_seen() {
    let files = Files::new();
    let first = files.svid();
    let second = files.svid();
    for (name, svid) in [("one", &first), ("two", &second)] {
        fs::create_dir(files.path(name)).unwrap();
        fs::write(files.path(name).join("chain.pem"), chain_pem(&svid.chain)).unwrap();
        fs::write(files.path(name).join("key.pem"), key_pem(svid)).unwrap();
        fs::write(files.path(name).join("bundle.pem"), files.realm.bundle().to_pem()).unwrap();
    }
    std::os::unix::fs::symlink("one", files.path("now")).unwrap();
    let now = files.path("now");
    let options = FileOptions {
        chain: now.join("chain.pem"),
        key: now.join("key.pem"),
        bundle: now.join("bundle.pem"),
        ..files.options()
    };
    let source = Source::from_files(options).await.unwrap();
    assert!(shows(&source.status(), &first));
    std::os::unix::fs::symlink("two", files.path("next")).unwrap();
    fs::rename(files.path("next"), &now).unwrap();
    files.until(&source, |status| shows(status, &second)).await;
}

#[tokio::test]
async fn a_torn_set_is_not_used_and_the_rest_of_it_is_waited_for() {
    let files = Files::new();
    let first = files.svid();
    files.write(&first);
    let source = files.source().await;
    let second = files.svid();
    replace(&files.path("key.pem"), &key_pem(&second));
    let status = files.until(&source, |status| !status.troubles.is_empty()).await;
    assert!(shows(&status, &first));
    let told = &status.troubles[&Topic::Identity];
    assert!(told.contains("does not belong to the leaf"), "{told}");
    assert!(source.trust().identity().is_some_and(|own| own.serial() == Some(first.serial())));
    replace(&files.path("chain.pem"), &chain_pem(&second.chain));
    let status = files.until(&source, |status| shows(status, &second)).await;
    assert!(!status.troubles.contains_key(&Topic::Identity));
}

#[tokio::test]
async fn bad_files_leave_what_was_good_in_place() {
    let files = Files::new();
    let good = files.svid();
    files.write(&good);
    let source = files.source().await;
    let stranger = Realm::new("shop.example", 2, files.clock.now());
    let past = files.realm.svid("/web", files.clock.now() - Duration::from_secs(500), 60);
    let cases: [(&str, &str, String); 8] = [
        ("chain.pem", "nothing", String::new()),
        ("chain.pem", "half of it", chain_pem(&good.chain)[..400].to_owned()),
        ("chain.pem", "what is expired", chain_pem(&past.chain)),
        ("chain.pem", "very much", "x".repeat(2_000_000)),
        ("key.pem", "nothing", String::new()),
        ("key.pem", "a certificate", chain_pem(&good.chain)),
        ("bundle.pem", "strangers", stranger.bundle().to_pem()),
        ("bundle.pem", "half of JSON", "{\"keys\":[".to_owned()),
    ];
    for (name, what, text) in cases {
        replace(&files.path(name), &text);
        let status = files.until(&source, |status| !status.troubles.is_empty()).await;
        assert!(shows(&status, &good), "{name}: {what}");
        let trust = source.trust();
        assert_eq!(trust.slice().bundles.iter().count(), 1, "{name}: {what}");
        let domain = "shop.example".parse().unwrap();
        let held = trust.slice().bundles.get(&domain).unwrap().authorities.clone();
        assert_eq!(held, std::slice::from_ref(&files.realm.root), "{name}: {what}");
        files.write(&good);
        files.until(&source, |status| status.troubles.is_empty()).await;
    }
    fs::remove_file(files.path("key.pem")).unwrap();
    let status = files.until(&source, |status| !status.troubles.is_empty()).await;
    assert!(shows(&status, &good));
}

#[tokio::test]
async fn a_start_with_bad_files_says_which_and_why() {
    let files = Files::new();
    let fault = |options| async { Source::from_files(options).await.unwrap_err().to_string() };
    let told = fault(files.options()).await;
    assert!(told.contains("cannot read") && told.contains("chain.pem"), "{told}");
    files.write(&files.svid());
    let told =
        fault(FileOptions { chain: files.folder.path().to_owned(), ..files.options() }).await;
    assert!(told.contains("is not a file"), "{told}");
    replace(
        &files.path("key.pem"),
        "-----BEGIN EC PRIVATE KEY-----\nAAAA\n-----END EC PRIVATE KEY-----\n",
    );
    let told = fault(files.options()).await;
    assert!(told.contains("openssl pkcs8"), "{told}");
    files.write(&files.svid());
    let other = Some("other.example".parse().unwrap());
    let told = fault(FileOptions { trust_domain: other, ..files.options() }).await;
    assert!(told.contains("chain.pem"), "{told}");
    let options = FileOptions { authorization: Authorization::FromAgent, ..files.options() };
    assert!(matches!(Source::from_files(options).await, Err(SourceFault::NoAgent)));
}

#[tokio::test]
async fn a_bundle_may_be_json_and_another_domain_may_be_trusted() {
    let files = Files::new();
    files.write(&files.svid());
    replace(&files.path("bundle.pem"), &files.realm.bundle().to_json());
    let partner = Realm::new("partner.example", 3, files.clock.now());
    fs::write(files.path("partner.pem"), partner.bundle().to_pem()).unwrap();
    let federated = vec![("partner.example".parse().unwrap(), files.path("partner.pem"))];
    let source = Source::from_files(FileOptions { federated, ..files.options() }).await.unwrap();
    assert_eq!(source.trust().slice().bundles.iter().count(), 2);
}

#[tokio::test]
async fn a_key_that_all_can_read_is_told() {
    let files = Files::new();
    files.write(&files.svid());
    fs::set_permissions(files.path("key.pem"), fs::Permissions::from_mode(0o644)).unwrap();
    let source = files.source().await;
    assert!(source.status().troubles[&Topic::KeyFile].contains("key.pem"));
    fs::set_permissions(files.path("key.pem"), fs::Permissions::from_mode(0o600)).unwrap();
    files.until(&source, |status| status.troubles.is_empty()).await;
}

#[tokio::test]
async fn an_edited_policy_file_takes_effect_and_a_broken_one_does_not() {
    use countersign_policy::{ConnectRequest, Context, Principal};
    let files = Files::new();
    files.write(&files.svid());
    let path = files.path("shop.cedar");
    let text = |id: &str| {
        format!(
            "permit (principal == Workload::\"spiffe://shop.example/{id}\", action, resource == Service::\"orders\");"
        )
    };
    fs::write(&path, "permit (principal, action, resource);").unwrap();
    let options =
        FileOptions { authorization: Authorization::PolicyFile(path.clone()), ..files.options() };
    let told = Source::from_files(options.clone()).await.unwrap_err().to_string();
    assert!(told.contains("shop.cedar") && told.contains("@unscoped"), "{told}");

    replace(&path, &text("web"));
    let source = Source::from_files(options).await.unwrap();
    let allows = |id: &str| {
        let principal = Principal::Id(format!("spiffe://shop.example/{id}").parse().unwrap());
        let context = Context::default();
        let (service, now) = ("orders", Timestamp::EPOCH);
        let request = ConnectRequest { principal: &principal, service, context: &context, now };
        source.trust().slice().policies.decide(&request).is_allowed()
    };
    assert!(allows("web") && !allows("payments"));
    replace(&path, "permit (");
    files.until(&source, |status| status.troubles.contains_key(&Topic::Policy)).await;
    assert!(allows("web") && !allows("payments"));
    replace(&path, &text("payments"));
    files.until(&source, |status| !status.troubles.contains_key(&Topic::Policy)).await;
    assert!(!allows("web") && allows("payments"));
    // Gone is not empty: what was allowed last stays.
    fs::remove_file(&path).unwrap();
    files.until(&source, |status| status.troubles.contains_key(&Topic::Policy)).await;
    assert!(allows("payments"));
}
