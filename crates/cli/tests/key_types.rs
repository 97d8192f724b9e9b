//! Workloads with other keys than the usual ones, through real proxies and in files.

#![expect(clippy::unwrap_used, reason = "a test ends where something is not as expected")]

mod support;

use std::path::{Path, PathBuf};
use std::process::Command;

use support::{Up, folder, shop, text, until};

/// The shop, each of its workloads with a key of another kind.
fn shop_with_keys(to: &Path, kinds: &[(&str, &str)]) -> PathBuf {
    let folder = to.join("shop");
    std::fs::create_dir(&folder).unwrap();
    let mut changed = 0;
    for entry in std::fs::read_dir(shop()).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "yaml") {
            let mut manifests = std::fs::read_to_string(&path).unwrap();
            for (name, kind) in kinds {
                let selectors = format!("selectors: [\"launch:{name}\"]\n");
                changed += manifests.matches(&selectors).count();
                let more = format!("{selectors}  keyType: {kind}\n");
                manifests = manifests.replace(&selectors, &more);
            }
            std::fs::write(folder.join(path.file_name().unwrap()), manifests).unwrap();
        } else if path.is_file() {
            std::fs::copy(&path, folder.join(path.file_name().unwrap())).unwrap();
        }
    }
    assert_eq!(changed, kinds.len());
    folder
}

fn openssl(arguments: &[&str], file: &Path) -> String {
    let output = Command::new("openssl").args(arguments).arg("-in").arg(file).output().unwrap();
    assert!(output.status.success(), "{arguments:?}: {}", text(&output.stderr));
    text(&output.stdout)
}

#[test]
fn services_with_rsa_and_p384_keys_talk_through_proxies_and_their_files_fit_together() {
    let state = folder();
    let kinds = [("web", "rsa-2048"), ("orders", "ecdsa-p384"), ("payments", "rsa-3072")];
    let manifests = shop_with_keys(state.path(), &kinds);
    let up = Up::start(&manifests, &state.path().join("data"), &[]);
    assert_eq!(
        until("a request gets through", || {
            let answer = up.get("web", "/").0;
            (answer == 200).then_some(answer)
        }),
        200
    );

    for (kind, bits) in
        [("rsa-2048", "2048 bit"), ("rsa-3072", "3072 bit"), ("ecdsa-p384", "384 bit")]
    {
        let manifest = state.path().join("me.yaml");
        let me = support::manifest_of_me("5m")
            .replace("lifetime:", &format!("keyType: {kind}, lifetime:"));
        std::fs::write(&manifest, me).unwrap();
        up.json(&["apply", manifest.to_str().unwrap()]);
        let out = state.path().join("me");
        let key = until("the identity is served with the key that was asked for", || {
            let fetched = up.run(&["fetch", "x509", "--write", out.to_str().unwrap()]);
            let shown = fetched
                .status
                .success()
                .then(|| openssl(&["pkey", "-noout", "-text"], &out.join("svid-key.pem")));
            shown.filter(|shown| shown.contains(bits))
        });
        assert!(key.contains(bits), "{key}");
        let public = openssl(&["pkey", "-pubout"], &out.join("svid-key.pem"));
        let certified = openssl(&["x509", "-noout", "-pubkey"], &out.join("svid.pem"));
        assert_eq!(public, certified, "{kind}");
        for role in ["client", "server"] {
            let (svid, bundle) = (out.join("svid.pem"), out.join("bundle.pem"));
            let verified = Command::new(support::binary())
                .args(["verify", svid.to_str().unwrap(), "--bundle", bundle.to_str().unwrap()])
                .args(["--as", role])
                .output()
                .unwrap();
            assert!(verified.status.success(), "{}", text(&verified.stdout));
        }
    }
}
