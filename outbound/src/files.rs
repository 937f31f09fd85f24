//! Mails in files, for development: for their owner alone, and gone with the person whom they were for.
//!
//! A file's name says whose mail it is, `<tenant>_<user>_<delivery>.eml`, so that those of somebody who was erased are found when nothing else knows their address any more.

use std::io;
use std::path::{Path, PathBuf};

use store::Store;
use tokio::io::AsyncWriteExt as _;
use uuid::Uuid;

use crate::queue::Due;

/// A directory of mails.
#[derive(Clone, Debug)]
pub struct MailFiles {
    directory: PathBuf,
}

impl MailFiles {
    /// Makes the directory, if need be. Nobody but its owner may enter it, whatever the umask is and whoever made it.
    pub fn open(directory: &Path) -> io::Result<Self> {
        use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
        std::fs::set_permissions(directory, std::fs::Permissions::from_mode(0o700))?;
        for entry in std::fs::read_dir(directory)? {
            // Older versions wrote them for everybody.
            std::fs::set_permissions(entry?.path(), std::fs::Permissions::from_mode(0o600))?;
        }
        Ok(Self { directory: directory.to_owned() })
    }

    /// Writes a mail, at once or not at all.
    pub(crate) async fn write(&self, due: &Due, mail: &[u8]) -> io::Result<()> {
        let name = format!("{}_{}_{}", due.tenant_id, due.subject_id, due.id);
        let (draft, place) = (self.directory.join(format!("{name}.new")), self.directory.join(format!("{name}.eml")));
        let mut file = tokio::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&draft).await?;
        file.write_all(mail).await?;
        file.sync_all().await?;
        tokio::fs::rename(&draft, &place).await
    }

    /// Removes the mails of people and tenants that were erased. Those of older versions do not say whose they are: they go too, unless nobody was erased at all.
    pub async fn forget_erased(&self, store: &Store) -> io::Result<()> {
        let mut files = tokio::fs::read_dir(&self.directory).await?;
        let mut found: Vec<(Option<(Uuid, Uuid)>, PathBuf)> = Vec::new();
        while let Some(file) = files.next_entry().await? {
            found.push((owner(&file.file_name().to_string_lossy()), file.path()));
        }
        let (tenants, users): (Vec<Uuid>, Vec<Uuid>) = found.iter().filter_map(|(owner, _)| *owner).unzip();
        let erased: Vec<(Uuid, Uuid)> = sqlx::query_as(
            "select o.tenant_id, o.subject_id from (select distinct * from unnest($1::uuid[], $2::uuid[]) as u (tenant_id, subject_id)) o
             left join ops.subject_keys k using (tenant_id, subject_id) left join tenant_heads h on h.tenant_id = o.tenant_id
             where (k.tenant_id is not null and k.wrapped_key is null) or h.gate = 'deleted'",
        )
        .bind(tenants)
        .bind(users)
        .fetch_all(store.pool())
        .await
        .map_err(io::Error::other)?;
        let anybody: bool = sqlx::query_scalar("select exists (select from ops.subject_keys where wrapped_key is null)")
            .fetch_one(store.pool())
            .await
            .map_err(io::Error::other)?;
        for (owner, path) in found {
            if owner.map_or(anybody, |owner| erased.contains(&owner)) {
                match tokio::fs::remove_file(&path).await {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                    Ok(()) | Err(_) => {}
                }
            }
        }
        Ok(())
    }
}

/// Whose mail a file is, by its name.
fn owner(name: &str) -> Option<(Uuid, Uuid)> {
    let mut parts = name.split('_').map(str::parse);
    Some((parts.next()?.ok()?, parts.next()?.ok()?))
}
