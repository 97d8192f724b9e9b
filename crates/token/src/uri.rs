//! Names of keys in tokens (RFC 7512), as far as we need them.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

const SCHEME: &str = "pkcs11:";
const URI_BYTES_MAX: usize = 2048;

/// The name of a key in a token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenUri {
    text: String,
    /// The token's label.
    pub(crate) token: Option<String>,
    /// The token's serial number.
    pub(crate) serial: Option<String>,
    /// The key's label.
    pub(crate) object: Option<String>,
    /// The key's id.
    pub(crate) id: Option<Vec<u8>>,
    /// The library that speaks to the token.
    pub(crate) module: PathBuf,
    /// The file of the PIN.
    pub(crate) pin_source: Option<PathBuf>,
}

/// Why a text is not such a name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadTokenUri {
    /// Something else.
    #[error(
        "it is no PKCS#11 URI: expected `pkcs11:token=LABEL;object=LABEL?module-path=/path/of/module.so`"
    )]
    Scheme,
    /// Over the bound.
    #[error("a PKCS#11 URI of {0} bytes is over the limit of {URI_BYTES_MAX}")]
    Long(usize),
    /// An attribute that we do not know, or that stands twice.
    #[error(
        "the PKCS#11 URI has `{0}`, which is not understood here, or stands there twice: expected `token`, `serial`, `object`, \
         `id`, and after `?` `module-path` and `pin-source`"
    )]
    Attribute(String),
    /// Wrongly escaped.
    #[error("the value of `{0}` in the PKCS#11 URI is wrongly escaped")]
    Escape(String),
    /// Empty, or with characters that no name has.
    #[error(
        "the value of `{0}` in the PKCS#11 URI is empty, or holds what no name and no path may hold"
    )]
    Value(String),
    /// A PIN where others can read it.
    #[error(
        "the PKCS#11 URI holds a PIN, which others can read: write `pin-source=file:/path`, or give it in a file or the environment"
    )]
    Pin,
    /// One that is missing.
    #[error(
        "the PKCS#11 URI has no {0}: write `pkcs11:token=LABEL;object=KEY?module-path=/path/of/module.so`"
    )]
    Missing(&'static str),
}

impl TokenUri {
    /// The text.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// What it names, without where it is reached: no path of this machine, and no place of a PIN.
    pub(crate) fn name(&self) -> &str {
        self.text.split_once('?').map_or(&self.text, |(name, _)| name)
    }

    /// How messages name the token.
    pub(crate) fn token_named(&self) -> String {
        let label = self.token.as_ref().map(|label| format!("`{}`", label.escape_debug()));
        let serial = self.serial.as_ref().map(|it| format!("with serial `{}`", it.escape_debug()));
        [label, serial].into_iter().flatten().collect::<Vec<_>>().join(" ")
    }

    /// How messages name the key.
    pub(crate) fn object_named(&self) -> String {
        let label = self.object.as_ref().map(|label| format!("`{}`", label.escape_debug()));
        let id = self.id.as_ref().map(|id| {
            let hex: String = id.iter().map(|byte| format!("{byte:02x}")).collect();
            format!("with id `{hex}`")
        });
        [label, id].into_iter().flatten().collect::<Vec<_>>().join(" ")
    }
}

impl FromStr for TokenUri {
    type Err = BadTokenUri;

    fn from_str(text: &str) -> Result<Self, BadTokenUri> {
        if URI_BYTES_MAX < text.len() {
            return Err(BadTokenUri::Long(text.len()));
        }
        let rest = text.strip_prefix(SCHEME).ok_or(BadTokenUri::Scheme)?;
        let (path, query) = rest.split_once('?').unwrap_or((rest, ""));
        let mut uri = Self {
            text: text.to_owned(),
            token: None,
            serial: None,
            object: None,
            id: None,
            module: PathBuf::new(),
            pin_source: None,
        };
        for part in path.split(';').filter(|part| !part.is_empty()) {
            let (name, value) = part.split_once('=').ok_or(BadTokenUri::Scheme)?;
            let bytes = unescape(name, value)?;
            let known = match name {
                "token" => uri.token.replace(utf8(name, bytes)?).is_none(),
                "serial" => uri.serial.replace(utf8(name, bytes)?).is_none(),
                "object" => uri.object.replace(utf8(name, bytes)?).is_none(),
                "id" if bytes.is_empty() => return Err(BadTokenUri::Value(name.to_owned())),
                "id" => uri.id.replace(bytes).is_none(),
                "type" => bytes == b"private",
                _ => false,
            };
            if !known {
                return Err(BadTokenUri::Attribute(name.escape_debug().to_string()));
            }
        }
        for part in query.split('&').filter(|part| !part.is_empty()) {
            let (name, value) = part.split_once('=').ok_or(BadTokenUri::Scheme)?;
            if name == "pin-value" {
                return Err(BadTokenUri::Pin);
            }
            let value = utf8(name, unescape(name, value)?)?;
            let known = match name {
                "module-path" if uri.module.as_os_str().is_empty() => {
                    uri.module = value.into();
                    true
                }
                "pin-source" => {
                    let path = value.strip_prefix("file:").unwrap_or(&value);
                    let path = path.strip_prefix("//").unwrap_or(path);
                    uri.pin_source.replace(path.into()).is_none()
                }
                _ => false,
            };
            if !known {
                return Err(BadTokenUri::Attribute(name.escape_debug().to_string()));
            }
        }
        uri.complete()
    }
}

impl TokenUri {
    fn complete(self) -> Result<Self, BadTokenUri> {
        if self.token.is_none() && self.serial.is_none() {
            return Err(BadTokenUri::Missing("`token` or `serial`"));
        }
        if self.object.is_none() && self.id.is_none() {
            return Err(BadTokenUri::Missing("`object` or `id`"));
        }
        // A name without a place would be looked up where the loader looks, which others may have arranged.
        if !self.module.is_absolute() {
            return Err(BadTokenUri::Missing("`module-path` with an absolute path"));
        }
        if self.pin_source.as_ref().is_some_and(|file| !file.is_absolute()) {
            return Err(BadTokenUri::Missing("absolute path in `pin-source`"));
        }
        Ok(self)
    }
}

impl fmt::Display for TokenUri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// A text of at least one character, none of which does anything: labels are shown, and paths go to the loader.
fn utf8(name: &str, bytes: Vec<u8>) -> Result<String, BadTokenUri> {
    let text = String::from_utf8(bytes).ok();
    let text = text.filter(|text| !text.is_empty() && !text.contains(char::is_control));
    text.ok_or_else(|| BadTokenUri::Value(name.escape_debug().to_string()))
}

/// Takes `%41` for `A` (RFC 3986, 2.1).
fn unescape(name: &str, value: &str) -> Result<Vec<u8>, BadTokenUri> {
    let bad = || BadTokenUri::Escape(name.escape_debug().to_string());
    let mut bytes = Vec::with_capacity(value.len());
    let mut rest = value.as_bytes();
    while let Some((byte, after)) = rest.split_first() {
        rest = after;
        if *byte != b'%' {
            bytes.push(*byte);
            continue;
        }
        let (digits, after) = rest.split_at_checked(2).ok_or_else(bad)?;
        let digits = std::str::from_utf8(digits).map_err(|_bad| bad())?;
        if !digits.bytes().all(|digit| digit.is_ascii_hexdigit()) {
            return Err(bad());
        }
        bytes.push(u8::from_str_radix(digits, 16).map_err(|_bad| bad())?);
        rest = after;
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "pkcs11:token=My%20roots;object=root?module-path=/lib/p11.so";

    #[track_caller]
    fn refused(text: &str, bad: &BadTokenUri) {
        assert_eq!(text.parse::<TokenUri>().as_ref(), Err(bad), "{text}");
    }

    #[test]
    fn names_are_read_with_their_escapes() {
        let uri: TokenUri = GOOD.parse().unwrap();
        assert_eq!(uri.token.as_deref(), Some("My roots"));
        assert_eq!(uri.module, PathBuf::from("/lib/p11.so"));
        assert_eq!(uri.to_string(), GOOD);
        let full =
            "pkcs11:serial=1f;id=%01%ff;type=private?pin-source=file:/run/pin&module-path=/p.so";
        let uri: TokenUri = full.parse().unwrap();
        assert_eq!((uri.id, uri.serial.as_deref()), (Some(vec![1, 0xff]), Some("1f")));
        assert_eq!(uri.pin_source, Some(PathBuf::from("/run/pin")));
        let triple: TokenUri = format!("{GOOD}&pin-source=file:///run/pin").parse().unwrap();
        assert_eq!(triple.pin_source, Some(PathBuf::from("/run/pin")));
    }

    #[test]
    fn what_is_missing_repeated_unknown_or_secret_is_refused() {
        refused("https://x", &BadTokenUri::Scheme);
        refused("pkcs11:object=a?module-path=/a", &BadTokenUri::Missing("`token` or `serial`"));
        refused("pkcs11:token=a?module-path=/a", &BadTokenUri::Missing("`object` or `id`"));
        let module = BadTokenUri::Missing("`module-path` with an absolute path");
        refused("pkcs11:token=a;object=b", &module);
        refused("pkcs11:token=a;object=b?module-path=p11.so", &module);
        refused(&format!("{GOOD}&pin-value=1234"), &BadTokenUri::Pin);
        refused(&format!("{GOOD}&more=1"), &BadTokenUri::Attribute("more".into()));
        refused("pkcs11:token=a;token=b;object=c", &BadTokenUri::Attribute("token".into()));
        refused("pkcs11:type=public;token=a", &BadTokenUri::Attribute("type".into()));
        for bad in ["%", "%4", "%zz", "%+1"] {
            refused(&format!("pkcs11:token={bad}"), &BadTokenUri::Escape("token".into()));
        }
        for bad in ["%ff", "", "%00", "%1b"] {
            refused(&format!("pkcs11:token={bad}"), &BadTokenUri::Value("token".into()));
        }
        refused(&format!("pkcs11:{}", "a".repeat(3000)), &BadTokenUri::Long(3007));
    }

    #[test]
    fn the_pin_of_a_refused_name_is_not_repeated() {
        let bad = format!("{GOOD}&pin-value=5678").parse::<TokenUri>().unwrap_err();
        assert!(!bad.to_string().contains("5678"), "{bad}");
    }

    #[test]
    fn hostile_names_are_refused_and_never_panic() {
        // What a shell, a log, a loader or a C string might take for something else.
        for bad in [
            "pkcs11:token=a%00b;object=c?module-path=/a.so",
            "pkcs11:token=a;object=b?module-path=/a%00.so",
            "pkcs11:token=a;object=b?module-path=/a%0a.so",
            "pkcs11:token=a%1b%5b2J;object=b?module-path=/a.so",
            "pkcs11:token=a;object=b?module-path=/a.so&pin-source=%7ccat%20/etc/shadow%00",
            "pkcs11:token;object=b?module-path=/a.so",
            "pkcs11:=a;object=b?module-path=/a.so",
            "pkcs11:token=;object=b?module-path=/a.so",
            "pkcs11:token=a;object=b;id=?module-path=/a.so",
            "pkcs11:token=a;object=b?module-path=/a.so&module-path=/b.so",
            "pkcs11:token=a;object=b?module-path=/a.so&pin-source=relative",
            "PKCS11:token=a;object=b?module-path=/a.so",
            "pkcs11:token=a;object=b?module-path=/a.so#fragment=%",
        ] {
            let refused = bad.parse::<TokenUri>().expect_err(bad).to_string();
            assert!(!refused.contains(['\0', '\n', '\u{1b}']), "{refused:?}");
        }
        // Each prefix, and each byte in each place, of one that is good.
        for at in 0..GOOD.len() {
            let _any = GOOD[..at].parse::<TokenUri>();
            for byte in (0..=0x7f_u8).map(char::from) {
                let text = format!("{}{byte}{}", &GOOD[..at], &GOOD[at + 1..]);
                if let Ok(uri) = text.parse::<TokenUri>() {
                    assert!(
                        uri.module.is_absolute() && !uri.token_named().contains('\n'),
                        "{text}"
                    );
                }
            }
        }
        let _unicode = "pkcs11:token=é%c3%a9;object=日?module-path=/é".parse::<TokenUri>().unwrap();
    }
}
