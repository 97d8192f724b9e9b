//! How a key is proven to a server: its nonce is signed, for this connection and this request alone.

use bytes::Bytes;
use countersign_api::attestation::machine_statement;
use countersign_api::renewal::renewal_statement;
use countersign_api::v1;
use countersign_api::v1::node_client::NodeClient;
use countersign_identity::{Code, Sha256};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;

use crate::server_link::wire::{self, broken, fault};
use crate::server_link::{LinkFault, MachineCredential, RenewAsk, Renewed};

/// Shows a machine's certificate, and signs the server's nonce with its key.
pub(super) async fn attest_machine(
    client: &mut NodeClient<Channel>,
    machine: &MachineCredential,
    csr: Vec<u8>,
    host: String,
    exporter: &[u8; 32],
) -> Result<v1::AttestResponse, LinkFault> {
    use v1::attest_x509_request::Step as Out;
    use v1::attest_x509_response::Step as In;
    let (outgoing, requests) = mpsc::channel(2);
    let closed = |_closed| LinkFault::new(Code::Unavailable, "the server ended the attestation");
    let say = |step| v1::AttestX509Request { step: Some(step) };
    let hello = v1::AttestX509Hello { version: env!("CARGO_PKG_VERSION").to_owned() };
    outgoing.send(say(Out::Hello(hello))).await.map_err(closed)?;
    let answer = client.attest_x509(ReceiverStream::new(requests)).await;
    let mut incoming = answer.map_err(|status| fault(&status))?.into_inner();

    let first = incoming.message().await.map_err(|status| fault(&status))?;
    let Some(In::Nonce(nonce)) = first.and_then(|response| response.step) else {
        return Err(broken("a nonce was expected"));
    };
    let nonce = wire::nonce(&nonce)?;
    let certificate = machine.chain.leaf().fingerprint();
    let statement = machine_statement(&nonce, exporter, certificate, sha256(&csr));
    let signed = machine.key.sign(&statement);
    let signature = signed.map_err(|why| LinkFault::new(Code::Internal, why.to_string()))?.into();
    let chain = machine.chain.ders().into_iter().map(Bytes::copy_from_slice).collect();
    let proof = v1::AttestX509Proof { chain, signature, csr: csr.into(), host };
    outgoing.send(say(Out::Proof(proof))).await.map_err(closed)?;

    let last = incoming.message().await.map_err(|status| fault(&status))?;
    match last.and_then(|response| response.step) {
        Some(In::Attested(attested)) => Ok(attested),
        Some(In::Nonce(_)) | None => Err(broken("the node's certificate was expected")),
    }
}

pub(super) async fn renew(
    client: &mut NodeClient<Channel>,
    ask: &RenewAsk,
    exporter: &[u8; 32],
) -> Result<Renewed, LinkFault> {
    use v1::renew_request::Step as Out;
    use v1::renew_response::Step as In;
    let (outgoing, requests) = mpsc::channel(2);
    let closed = |_closed| LinkFault::new(Code::Unavailable, "the server ended the renewal");
    let node_id = ask.node.as_bytes().to_vec().into();
    let chain = ask.chain.ders().into_iter().map(Bytes::copy_from_slice).collect();
    let hello = v1::RenewHello { node_id, generation: ask.generation, chain };
    outgoing.send(v1::RenewRequest { step: Some(Out::Hello(hello)) }).await.map_err(closed)?;
    let answer = client.renew(ReceiverStream::new(requests)).await;
    let mut incoming = answer.map_err(|status| fault(&status))?.into_inner();

    let first = incoming.message().await.map_err(|status| fault(&status))?;
    let Some(In::Nonce(nonce)) = first.and_then(|response| response.step) else {
        return Err(broken("a nonce was expected"));
    };
    let nonce = wire::nonce(&nonce)?;
    let digest = sha256(&ask.successor_csr);
    let statement = renewal_statement(&nonce, exporter, ask.node, ask.generation, digest);
    let signature =
        ask.key.sign(&statement).map_err(|why| LinkFault::new(Code::Internal, why.to_string()))?;
    let proof = v1::RenewProof {
        signature: signature.into(),
        successor_csr: ask.successor_csr.clone().into(),
    };
    outgoing.send(v1::RenewRequest { step: Some(Out::Proof(proof)) }).await.map_err(closed)?;

    let second = incoming.message().await.map_err(|status| fault(&status))?;
    match second.and_then(|response| response.step) {
        Some(In::Renewed(answer)) => wire::renewed(answer),
        Some(In::Nonce(_)) | None => Err(broken("a certificate was expected")),
    }
}

fn sha256(bytes: &[u8]) -> Sha256 {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, bytes);
    Sha256::from_bytes(digest.as_ref().try_into().expect("a SHA-256 digest has 32 bytes"))
}
