//! The node's lasting keys: one signs its facts, the other opens what is sealed to it. They never leave the node.

use aws_lc_rs::signature::{ED25519, Ed25519KeyPair, KeyPair, UnparsedPublicKey};
use rustls::crypto::aws_lc_rs::hpke::DH_KEM_X25519_HKDF_SHA256_AES_256 as SUITE;
use rustls::crypto::hpke::{EncapsulatedSecret, Hpke, HpkePrivateKey, HpkePublicKey};
use weft_proto::command::{NodeKeys, PUBLIC_KEY_LENGTH};
use weft_proto::identity::NodeName;

use crate::world::{World, random};

const SEAL_INFO: &[u8] = b"weft sealed authority v1";
const SEED_LENGTH: usize = 32;

/// The secret halves.
pub struct Keys {
    fact: Ed25519KeyPair,
    fact_seed: [u8; SEED_LENGTH],
    seal_secret: Vec<u8>,
    seal_public: [u8; PUBLIC_KEY_LENGTH],
}

/// Something sealed that this node cannot open.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct KeyError(String);

impl Keys {
    /// Makes a new pair of keys.
    pub fn generate(world: &impl World) -> Result<Self, KeyError> {
        let seed: [u8; SEED_LENGTH] = random(world);
        let (public, secret) =
            SUITE.generate_key_pair().map_err(|error| KeyError(format!("cannot make a key: {error}")))?;
        Self::assemble(seed, secret.secret_bytes().to_vec(), &public.0)
    }

    /// The form in which they are kept on this node's disk.
    pub fn to_bytes(&self) -> Vec<u8> {
        [&self.fact_seed[..], &self.seal_public[..], &self.seal_secret[..]].concat()
    }

    /// Reads what [`Keys::to_bytes`] wrote.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, KeyError> {
        let damaged = || KeyError("the node's keys on disk are damaged".into());
        let (seed, rest) = bytes.split_at_checked(SEED_LENGTH).ok_or_else(damaged)?;
        let (public, secret) = rest.split_at_checked(PUBLIC_KEY_LENGTH).ok_or_else(damaged)?;
        Self::assemble(seed.try_into().map_err(|_| damaged())?, secret.to_vec(), public)
    }

    /// The public halves, for admission.
    pub fn public(&self, name: &NodeName) -> NodeKeys {
        let fact_key = self.fact.public_key().as_ref().try_into().expect("an Ed25519 public key has 32 bytes");
        NodeKeys { name: name.clone(), fact_key, seal_key: self.seal_public }
    }

    /// Signs the node's facts.
    pub fn sign(&self, facts: &[u8]) -> Vec<u8> {
        self.fact.sign(facts).as_ref().to_vec()
    }

    /// The signing half in PKCS #8: a node's own certificates are for its lasting key, by which it was admitted.
    pub fn pkcs8(&self) -> Result<Vec<u8>, KeyError> {
        let document = self.fact.to_pkcs8().map_err(|error| KeyError(error.to_string()))?;
        Ok(document.as_ref().to_vec())
    }

    /// Opens what [`seal`] made for this node.
    pub fn open(&self, sealed: &[u8]) -> Result<Vec<u8>, KeyError> {
        let error = || KeyError("what is sealed to this node cannot be opened with its key".into());
        let (encapsulated, ciphertext) = sealed.split_at_checked(PUBLIC_KEY_LENGTH).ok_or_else(error)?;
        let encapsulated = EncapsulatedSecret(encapsulated.to_vec());
        let secret = HpkePrivateKey::from(self.seal_secret.clone());
        SUITE.open(&encapsulated, SEAL_INFO, &[], ciphertext, &secret).map_err(|_| error())
    }

    fn assemble(fact_seed: [u8; SEED_LENGTH], seal_secret: Vec<u8>, seal_public: &[u8]) -> Result<Self, KeyError> {
        let fact = Ed25519KeyPair::from_seed_unchecked(&fact_seed).map_err(|error| KeyError(error.to_string()))?;
        let seal_public = seal_public.try_into().map_err(|_| KeyError("an X25519 key has 32 bytes".into()))?;
        Ok(Self { fact, fact_seed, seal_secret, seal_public })
    }
}

impl std::fmt::Debug for Keys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Keys").finish_non_exhaustive()
    }
}

/// Seals a secret so that only the holder of the seal key can open it (HPKE base mode, RFC 9180).
pub fn seal(seal_key: &[u8; PUBLIC_KEY_LENGTH], secret: &[u8]) -> Result<Vec<u8>, KeyError> {
    let (encapsulated, ciphertext) = SUITE
        .seal(SEAL_INFO, &[], secret, &HpkePublicKey(seal_key.to_vec()))
        .map_err(|error| KeyError(format!("cannot seal: {error}")))?;
    Ok([encapsulated.0, ciphertext].concat())
}

/// Whether the holder of the fact key signed these facts.
pub fn verify(fact_key: &[u8; PUBLIC_KEY_LENGTH], facts: &[u8], signature: &[u8]) -> bool {
    UnparsedPublicKey::new(&ED25519, fact_key).verify(facts, signature).is_ok()
}
