//! The admin client against servers that answer, refuse, and misbehave.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::path::PathBuf;

use countersign_api::admin::{AdminClient, AdminError, ProblemDetails};
use countersign_identity::Code;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixListener;

/// A socket on which one connection is answered with these bytes.
async fn answered(answer: &'static [u8]) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::Builder::new().prefix("cs").tempdir_in("/tmp").unwrap();
    let path = folder.path().join("a.sock");
    let listener = UnixListener::bind(&path).unwrap();
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut request = [0; 4096];
        let _read = stream.read(&mut request).await.unwrap();
        stream.write_all(answer).await.unwrap();
    });
    (folder, path)
}

async fn error_of(answer: &'static [u8]) -> AdminError {
    let (_folder, path) = answered(answer).await;
    AdminClient::new(path).status().await.unwrap_err()
}

#[tokio::test]
async fn a_missing_server_is_told_with_its_path_and_a_remedy() {
    let error = AdminClient::new("/no/such.sock").status().await.unwrap_err();
    assert_eq!(error.code(), Code::Unavailable);
    let text = error.to_string();
    for part in ["unix:///no/such.sock", "no such file or directory", "--admin"] {
        assert!(text.contains(part), "{text}");
    }
    assert!(!text.contains("os error"), "{text}");
}

#[tokio::test]
async fn a_problem_keeps_its_code() {
    let error = error_of(
        b"HTTP/1.1 409 Conflict\r\nconnection: close\r\n\r\n\
          {\"type\":\"about:blank\",\"title\":\"t\",\"status\":409,\"detail\":\"it moved on\",\"code\":\"stale-base\",\"x\":1}",
    )
    .await;
    let AdminError::Refused(problem) = error else { panic!("{error}") };
    assert_eq!((problem.code, problem.detail.as_str()), (Code::StaleBase, "it moved on"));
}

#[tokio::test]
async fn an_answer_of_another_kind_is_never_taken_for_one() {
    for answer in [
        &b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}"[..],
        b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi",
        b"HTTP/1.1 500 Oops\r\ncontent-length: 2\r\n\r\n{}",
        b"HTTP/1.1 403 No\r\nconnection: close\r\n\r\n{\"type\":\"a\",\"title\":\"t\",\"status\":403,\"detail\":\"d\",\"code\":\"not-one-of-ours\"}",
    ] {
        let error = error_of(answer).await;
        assert!(matches!(error, AdminError::NotUnderstood { .. }), "{error}");
    }
    for answer in [&b""[..], b"SSH-2.0\r\n\r\n", b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n{}"]
    {
        let error = error_of(answer).await;
        assert!(matches!(error, AdminError::Broken { .. }), "{error}");
    }
}

#[test]
fn a_problem_says_what_its_code_means() {
    let problem = ProblemDetails::new(Code::SpentToken, 403, "the token was used");
    let again = ProblemDetails::decode(&problem.encode()).unwrap();
    assert_eq!(again, problem);
    assert!(again.kind.ends_with("/codes/spent-token"));
    assert_eq!(again.title, Code::SpentToken.meaning());
}
