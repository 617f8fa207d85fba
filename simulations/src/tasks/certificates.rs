//! Certificates as tasks name them: by files in folders, each folder with an authority of its own.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use parking_lot::Mutex;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
};

/// The certificates of a task, made when they are asked for.
pub(super) struct Certificates {
    directory: PathBuf,
    authorities: Mutex<BTreeMap<String, Issuer<'static, KeyPair>>>,
}

impl Certificates {
    pub(super) fn in_directory(directory: PathBuf) -> Self {
        Self { directory, authorities: Mutex::default() }
    }

    /// A file that a task names: `FOLDER/NAME.crt` or `FOLDER/NAME.key`. The authority of a folder is `example.com`.
    pub(super) fn file(&self, named: &str) -> Result<PathBuf, String> {
        let (folder, name) = named.rsplit_once('/').unwrap_or(("certs", named));
        let stem = name.strip_suffix(".crt").or_else(|| name.strip_suffix(".key"));
        let stem = stem.ok_or_else(|| format!("{named} is neither a certificate nor a key"))?;
        let path = self.directory.join(folder).join(name);
        if !path.exists() {
            self.make(folder, stem).map_err(|error| format!("{named}: {error}"))?;
        }
        Ok(path)
    }

    fn make(&self, folder: &str, stem: &str) -> Result<(), String> {
        let place = self.directory.join(folder);
        fs::create_dir_all(&place).map_err(|error| error.to_string())?;
        let mut authorities = self.authorities.lock();
        if !authorities.contains_key(folder) {
            let (certificate, issuer) = authority().map_err(|error| error.to_string())?;
            write(&place, AUTHORITY, (&certificate, &issuer.key().serialize_pem()))?;
            authorities.insert(folder.to_owned(), issuer);
        }
        if stem == AUTHORITY {
            return Ok(());
        }
        let (certificate, key) = leaf(stem, &authorities[folder]).map_err(|error| error.to_string())?;
        write(&place, stem, (&certificate, &key))
    }
}

fn write(place: &Path, stem: &str, (certificate, key): (&str, &str)) -> Result<(), String> {
    for (ending, text) in [("crt", certificate), ("key", key)] {
        fs::write(place.join(format!("{stem}.{ending}")), text).map_err(|error| error.to_string())?;
    }
    Ok(())
}

fn authority() -> Result<(String, Issuer<'static, KeyPair>), rcgen::Error> {
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::default();
    params.distinguished_name = name(AUTHORITY);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let certificate = params.self_signed(&key)?.pem();
    Ok((certificate, Issuer::new(params, key)))
}

fn leaf(stem: &str, issuer: &Issuer<'static, KeyPair>) -> Result<(String, String), rcgen::Error> {
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::new(vec![stem.to_owned()])?;
    params.distinguished_name = name(stem);
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    Ok((params.signed_by(&key, issuer)?.pem(), key.serialize_pem()))
}

fn name(common: &str) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, common);
    name
}

/// What the authority of a folder is called.
const AUTHORITY: &str = "example.com";
