//! Where an HTTP check goes: read strictly, because the library takes what cannot be meant (a port above
//! 65535 would be 80).

use std::net::{IpAddr, SocketAddr};

/// `http://localhost:3000/path`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Url {
    /// https
    pub tls: bool,
    /// A name, or an address without brackets.
    pub host: String,
    /// The port.
    pub port: u16,
    /// With its query; begins with a slash.
    pub path: String,
}

impl Url {
    /// Reads one.
    ///
    /// # Errors
    /// What is wrong, and what would do.
    pub fn parse(text: &str) -> Result<Url, String> {
        let wrong = |what: &str| {
            let text = text.escape_debug();
            format!("'{text}': {what}; http://localhost:3000/health would do")
        };
        let (scheme, rest) = text
            .split_once("://")
            .ok_or_else(|| wrong("it has no scheme"))?;
        let tls = match scheme.to_ascii_lowercase().as_str() {
            "http" => false,
            "https" => true,
            _ => return Err(wrong("its scheme is neither http nor https")),
        };
        let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
        let (authority, path) = rest.split_at(end);
        if authority.contains('@') {
            return Err(wrong(
                "user and password do not belong there (--header 'Authorization: ...' takes them)",
            ));
        }
        let (host, port) = match authority.strip_prefix('[') {
            Some(inside) => {
                let (address, port) = inside
                    .split_once(']')
                    .ok_or_else(|| wrong("a ] is missing"))?;
                if address.parse::<std::net::Ipv6Addr>().is_err() {
                    return Err(wrong("no IPv6 address stands between the brackets"));
                }
                (
                    address,
                    port.strip_prefix(':').or(port.is_empty().then_some("")),
                )
            }
            None => match authority.split_once(':') {
                Some((host, port)) => (host, Some(port)),
                None => (authority, Some("")),
            },
        };
        let port = match port.ok_or_else(|| wrong("the port cannot be read"))? {
            "" if authority.ends_with(':') => return Err(wrong("the port is missing")),
            "" => {
                if tls {
                    443
                } else {
                    80
                }
            }
            digits => digits
                .parse::<u16>()
                .ok()
                .filter(|port| *port > 0 && !digits.starts_with('+'))
                .ok_or_else(|| wrong("the port is none of 1 to 65535"))?,
        };
        let fine = |letter: char| letter.is_ascii_alphanumeric() || "-._".contains(letter);
        if host.is_empty() {
            return Err(wrong("it has no host"));
        }
        if !host.contains(':') && !host.chars().all(fine) {
            return Err(wrong("the host holds what no host name does"));
        }
        if path.contains('#') {
            return Err(wrong("a fragment (#) is never sent"));
        }
        let path = check_path(&if path.starts_with('/') {
            path.to_owned()
        } else {
            format!("/{path}")
        })
        .map_err(|what| wrong(&what))?;
        Ok(Url {
            tls,
            host: host.to_owned(),
            port,
            path,
        })
    }

    /// `localhost:3000`, `[::1]:80`, without the scheme's own port.
    #[must_use]
    pub fn authority(&self) -> String {
        let host = if self.host.contains(':') {
            format!("[{}]", self.host)
        } else {
            self.host.clone()
        };
        match (self.tls, self.port) {
            (false, 80) | (true, 443) => host,
            _ => format!("{host}:{}", self.port),
        }
    }

    /// The whole of it.
    #[must_use]
    pub fn text(&self) -> String {
        let scheme = if self.tls { "https" } else { "http" };
        format!("{scheme}://{}{}", self.authority(), self.path)
    }

    /// Where a Location leads that came as the answer of this one: an absolute URL, or a path.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn join(&self, location: &str) -> Result<Url, String> {
        let location = location.split('#').next().unwrap_or_default();
        if location.contains("://") {
            return Url::parse(location);
        }
        let mut next = self.clone();
        next.path = if location.starts_with("//") {
            return Url::parse(&format!(
                "{}:{location}",
                if self.tls { "https" } else { "http" }
            ));
        } else if location.starts_with('/') {
            check_path(location)?
        } else {
            let before = self.path.split('?').next().unwrap_or("/");
            let directory = &before[..before.rfind('/').map_or(0, |at| at + 1)];
            check_path(&format!("{directory}{location}"))?
        };
        Ok(next)
    }
}

/// A path as it is sent.
///
/// # Errors
/// What is wrong with it.
pub fn check_path(path: &str) -> Result<String, String> {
    if !path.starts_with('/') {
        return Err("a path begins with a slash".to_owned());
    }
    match path
        .chars()
        .find(|letter| !letter.is_ascii_graphic() || "\"<>\\^`{|}".contains(*letter))
    {
        Some(' ') => Err("a space in the path has to be written %20".to_owned()),
        Some(letter) => Err(format!("{letter:?} in the path has to be percent-encoded")),
        None => Ok(path.to_owned()),
    }
}

/// Where to connect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Endpoint {
    /// Both loopbacks, 127.0.0.1 first, whatever /etc/hosts says (RFC 6761 6.3).
    Localhost(u16),
    /// An address.
    Literal(SocketAddr),
    /// A name that is looked up each time.
    Name(String, u16),
    /// A unix socket; its path, or `@` and an abstract name.
    Unix(Vec<u8>),
}

impl Endpoint {
    /// By host and port.
    #[must_use]
    pub fn new(host: &str, port: u16) -> Endpoint {
        let bare = host.trim_end_matches('.').to_ascii_lowercase();
        if bare == "localhost" || bare.ends_with(".localhost") {
            Endpoint::Localhost(port)
        } else if let Ok(address) = host.parse::<IpAddr>() {
            Endpoint::Literal(SocketAddr::new(address, port))
        } else {
            Endpoint::Name(host.to_owned(), port)
        }
    }
}

/// C escapes of `--send` and `--receive`.
///
/// # Errors
/// What would do.
pub fn unescape(text: &str) -> Result<Vec<u8>, String> {
    let mut out = Vec::with_capacity(text.len());
    let mut letters = text.chars();
    while let Some(letter) = letters.next() {
        if letter != '\\' {
            out.extend_from_slice(letter.encode_utf8(&mut [0; 4]).as_bytes());
            continue;
        }
        match letters.next() {
            Some('r') => out.push(b'\r'),
            Some('n') => out.push(b'\n'),
            Some('t') => out.push(b'\t'),
            Some('0') => out.push(0),
            Some('\\') => out.push(b'\\'),
            Some('x') => {
                let digits: String = letters.by_ref().take(2).collect();
                let byte = u8::from_str_radix(&digits, 16)
                    .ok()
                    .filter(|_| digits.len() == 2);
                out.push(byte.ok_or_else(|| format!("'\\x{digits}': \\x0d would do"))?);
            }
            other => {
                let other = other.map(String::from).unwrap_or_default();
                return Err(format!(
                    "'\\{other}': \\r \\n \\t \\0 \\\\ and \\xHH would do"
                ));
            }
        }
    }
    Ok(out)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn urls() {
        for (text, again) in [
            ("http://localhost:3000", "http://localhost:3000/"),
            ("HTTPS://a.example/x?y=1", "https://a.example/x?y=1"),
            ("http://[::1]:80/", "http://[::1]/"),
            ("https://10.0.0.1:8443?q", "https://10.0.0.1:8443/?q"),
        ] {
            assert_eq!(Url::parse(text).unwrap().text(), again);
        }
        // Edge case 19.
        for text in [
            "localhost:3000",
            "ftp://a/",
            "http://",
            "http:///x",
            "http://a:0/",
            "http://a:99999/",
            "http://a:+80/",
            "http://a:/",
            "http://user:pw@a/",
            "http://a/b c",
            "http://a b/",
            "http://[::1/",
            "http://[x]/",
            "http://::1/",
            "http://a/\u{e4}",
            "http://a/#x",
        ] {
            let why = Url::parse(text).unwrap_err();
            assert!(why.contains("would do"), "{text}: {why}");
        }
    }

    #[test]
    fn locations() {
        let from = Url::parse("http://a:1/x/y?z").unwrap();
        for (location, to) in [
            ("/b", "http://a:1/b"),
            ("b", "http://a:1/x/b"),
            ("http://a:1/", "http://a:1/"),
            ("//c/d", "http://c/d"),
            ("/b#c", "http://a:1/b"),
        ] {
            assert_eq!(from.join(location).unwrap().text(), to);
        }
        assert!(from.join("/a b").is_err() && from.join("http://").is_err());
    }

    #[test]
    fn endpoints_and_escapes() {
        assert_eq!(Endpoint::new("localhost", 1), Endpoint::Localhost(1));
        assert_eq!(Endpoint::new("LOCALHOST.", 1), Endpoint::Localhost(1));
        assert!(matches!(Endpoint::new("::1", 1), Endpoint::Literal(_)));
        assert!(matches!(Endpoint::new("a.b", 1), Endpoint::Name(..)));
        assert_eq!(unescape("PING\\r\\n\\x41\\\\").unwrap(), b"PING\r\nA\\");
        for text in ["\\", "\\q", "\\x4", "\\xzz"] {
            assert!(unescape(text).unwrap_err().contains("would do"));
        }
    }

    /// Near enough to a URL to get past the first question.
    const NEAR: &str = "(http|HTTPS|https|ftp|)(://|:/|)[a-z0-9.:@\\[\\]_-]{0,12}(:[0-9+]{0,6})?(/|\\?|#|)[ -~\u{e4}]{0,12}";

    /// What was read can be read again, is the same, and is the same to the library: in one that it reads
    /// otherwise (a port above 65535 is 80 to it) something else would be asked than was said.
    fn stands(url: &Url) {
        let text = url.text();
        assert_eq!(Url::parse(&text).as_ref(), Ok(url));
        let theirs: ureq::http::Uri = text.parse().unwrap();
        assert_eq!(
            theirs.scheme_str(),
            Some(if url.tls { "https" } else { "http" })
        );
        assert_eq!(
            theirs.host().map(|host| host.trim_matches(['[', ']'])),
            Some(&*url.host)
        );
        let usual = if url.tls { 443 } else { 80 };
        assert_eq!(theirs.port_u16().unwrap_or(usual), url.port);
        assert_eq!(
            theirs.path_and_query().map(|path| path.as_str()),
            Some(&*url.path)
        );
        assert!(url.path.starts_with('/') && url.path.bytes().all(|byte| byte.is_ascii_graphic()));
        let _ = Endpoint::new(&url.host, url.port);
    }

    proptest! {
        #[test]
        fn whatever_is_typed_is_a_url_or_is_refused(text in "\\PC{0,40}", near in NEAR) {
            for text in [text, near] {
                match Url::parse(&text) {
                    Ok(url) => stands(&url),
                    Err(why) => assert!(why.contains("would do"), "{why}"),
                }
                let _ = check_path(&text);
            }
        }

        #[test]
        fn a_location_leads_to_a_url_or_nowhere(location in "\\PC{0,30}", near in NEAR) {
            let from = Url::parse("http://a.example:8080/x/y?z").unwrap();
            for location in [location, near] {
                if let Ok(url) = from.join(&location) {
                    stands(&url);
                }
            }
        }

        #[test]
        fn bytes_come_back_from_their_escapes(bytes in prop::collection::vec(any::<u8>(), 0..40), text in "\\PC{0,20}", near in "(\\\\[rnt0x\\\\a-f]?[0-9a-f\u{e4}]{0,2}){0,8}") {
            let escaped: String = bytes.iter().map(|byte| format!("\\x{byte:02x}")).collect();
            assert_eq!(unescape(&escaped).unwrap(), bytes);
            for text in [text, near] {
                match unescape(&text) {
                    Ok(bytes) => assert!(text.contains('\\') || bytes == text.as_bytes()),
                    Err(why) => assert!(why.contains("would do")),
                }
            }
        }
    }
}
