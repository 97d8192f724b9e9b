//! PostgreSQL's own file of passwords: lines of `host:port:database:user:password`, `*` for any.

use zeroize::Zeroizing;

use super::target::{Host, PostgresUrl};

/// The password of the first line that fits.
pub(super) fn find(text: &str, url: &PostgresUrl, host: &Host) -> Option<Zeroizing<String>> {
    let (name, port) = match host {
        Host::Tcp { name, port } => (name.as_str(), *port),
        Host::Unix { port, .. } => ("localhost", *port),
    };
    let port = port.to_string();
    let wanted = [name, port.as_str(), url.database.as_str(), url.user.as_str()];
    let fits = |fields: &[Zeroizing<String>]| {
        fields.iter().zip(wanted).all(|(field, wanted)| **field == "*" || **field == wanted)
    };
    let lines = text.lines().filter(|line| !line.starts_with('#')).map(fields);
    let mut fitting = lines.filter(|fields| fields.len() == 5 && fits(&fields[..4]));
    fitting.next().and_then(|mut fields| fields.pop())
}

/// The fields of a line; `\` takes a colon or itself as it is.
fn fields(line: &str) -> Vec<Zeroizing<String>> {
    let mut fields = vec![Zeroizing::new(String::new())];
    let mut characters = line.chars();
    while let Some(character) = characters.next() {
        match character {
            ':' if fields.len() < 5 => fields.push(Zeroizing::new(String::new())),
            '\\' => last(&mut fields).extend(characters.next()),
            other => last(&mut fields).push(other),
        }
    }
    fields
}

fn last(fields: &mut [Zeroizing<String>]) -> &mut String {
    fields.last_mut().expect("there is a first field from the start on")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_line_that_fits_wins() {
        let url: PostgresUrl = "postgres://cs@db:5433/state?sslmode=disable".parse().unwrap();
        let text = "# db:5433:state:cs:comment\ndb:5432:state:cs:port\ndb:*:other:cs:database\n\
                    *:*:state:cs:a\\:b\\\\c:d\n*:*:*:*:late\n";
        let found = find(text, &url, &url.hosts[0]);
        assert_eq!(found.as_ref().map(|password| password.as_str()), Some("a:b\\c:d"));
        assert_eq!(find("db:5433:state:other:x\nshort\n", &url, &url.hosts[0]), None);
    }

    #[test]
    fn a_unix_socket_is_localhost() {
        let url: PostgresUrl = "postgres://cs@/state?host=/run/pg".parse().unwrap();
        let found = find("localhost:5432:state:cs:x\n", &url, &url.hosts[0]);
        assert_eq!(found.as_ref().map(|password| password.as_str()), Some("x"));
    }
}
