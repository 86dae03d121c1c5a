//! Certificates, made by openssl as an operator makes them.

use crate::{Dir, Run};

fn openssl(dir: &Dir, words: &[&str]) {
    let made = Run::new("openssl").args(words).dir(dir.path()).finish();
    assert_eq!(made.status, 0, "openssl {words:?}: {}", made.err);
}

/// `key.pem` and `cert.pem`: one for localhost that signed itself, for so many days.
pub fn self_signed(dir: &Dir, days: u32) {
    let days = days.to_string();
    let mut words = vec!["req", "-x509", "-newkey", "ec", "-pkeyopt"];
    words.extend(["ec_paramgen_curve:prime256v1", "-nodes"]);
    words.extend(["-keyout", "key.pem", "-out", "cert.pem", "-days", &days]);
    words.extend(["-subj", "/CN=localhost", "-addext"]);
    words.push("subjectAltName=DNS:localhost,IP:127.0.0.1");
    openssl(dir, &words);
}

/// The same, but it ended long ago.
pub fn expired(dir: &Dir) {
    signed_by_ca(
        dir,
        &[
            "-not_before",
            "20200101000000Z",
            "-not_after",
            "20200201000000Z",
        ],
    );
}

/// `key.pem` and `cert.pem` for localhost, signed by a CA whose certificate is `ca.pem`.
pub fn ca_signed(dir: &Dir) {
    signed_by_ca(dir, &["-days", "90"]);
}

fn signed_by_ca(dir: &Dir, time: &[&str]) {
    let curve = [
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:prime256v1",
        "-nodes",
    ];
    let mut words = vec!["req", "-x509"];
    words.extend(curve);
    words.extend(["-keyout", "ca-key.pem", "-out", "ca.pem", "-days", "3650"]);
    words.extend(["-subj", "/CN=A test's own CA"]);
    words.extend(["-addext", "basicConstraints=critical,CA:TRUE"]);
    openssl(dir, &words);
    let mut words = vec!["req"];
    words.extend(curve);
    words.extend([
        "-keyout",
        "key.pem",
        "-out",
        "request.pem",
        "-subj",
        "/CN=localhost",
    ]);
    openssl(dir, &words);
    // openssl ca, because openssl x509 takes no dates before version 3.4.
    dir.write("index.txt", "");
    dir.write("serial", "1000\n");
    dir.write(
        "ca.conf",
        "[ca]\ndefault_ca=own\n[own]\ndatabase=index.txt\nserial=serial\nnew_certs_dir=.\n\
         certificate=ca.pem\nprivate_key=ca-key.pem\ndefault_md=sha256\npolicy=any\n\
         x509_extensions=leaf\n[any]\ncommonName=supplied\n\
         [leaf]\nsubjectAltName=DNS:localhost,IP:127.0.0.1\nbasicConstraints=CA:FALSE\n",
    );
    let mut words = vec!["ca", "-batch", "-config", "ca.conf", "-notext"];
    words.extend(["-in", "request.pem", "-out", "cert.pem"]);
    let dates: Vec<&str> = time
        .iter()
        .map(|word| match *word {
            "-not_before" => "-startdate",
            "-not_after" => "-enddate",
            word => word,
        })
        .collect();
    words.extend(dates);
    openssl(dir, &words);
}
