//! What may be asked of a device, and why it may be refused.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

use super::Status;
use super::event::Outcome;
use crate::instant::Instant;
use crate::json::JsonObject;
use crate::text::{Reason, Sha256, Tag, TextError, line, removable};

/// Letters, digits and what joins them, without blanks.
fn word(text: &str, max: usize) -> Result<String, TextError> {
    let text = line(text, max)?;
    let fine = text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b':' | b'/'));
    if fine { Ok(text) } else { Err(TextError::Malformed("must be of letters, digits and -_.:/")) }
}

crate::text_types! {
    /// What a device's maker calls it; unique in its tenant.
    Serial { max: 100, example: "TH-2041-77", parse: |t| word(t, 100) }
    /// What kind of device it is.
    Model { max: 100, example: "thermo-2", parse: |t| line(t, 100) }
    /// A group of devices.
    GroupName { max: 100, example: "vienna", parse: |t| line(t, 100) }
    /// What a device is asked to do.
    Method { max: 100, example: "reboot", parse: |t| word(t, 100) }
}

/// A device that is expected.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PreregisterDevice {
    /// What its maker calls it.
    pub serial: Serial,
    /// What kind of device it is.
    pub model: Model,
    /// Whatever else is known of it.
    pub metadata: JsonObject,
    /// SHA-256 of the code that it will show, in hexadecimal digits.
    pub claim_digest: Sha256,
}

/// Makes a device that is to be accepted. Its secret was drawn already.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RegisterDevice {
    /// What its maker calls it.
    pub serial: Serial,
    /// What kind of device it is.
    pub model: Model,
    /// Whatever else is known of it.
    pub metadata: JsonObject,
    /// Where the hash of its secret is.
    pub credential: Uuid,
}

/// A device that is expected shows its code. Its secret was drawn already.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ClaimDevice {
    /// SHA-256 of the code.
    pub claim_digest: Sha256,
    /// Where the hash of its secret is.
    pub credential: Uuid,
}

/// Does not accept a device.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({"reason": "not one of ours"}))]
pub struct RejectDevice {
    /// Why.
    pub reason: Reason,
}

/// Keeps a device from everything until somebody has looked at it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({"reason": "sends from two places at once"}))]
pub struct QuarantineDevice {
    /// What is wrong with it.
    pub reason: Reason,
}

/// Changes what is known of a device: a merge patch (RFC 7396).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(transparent)]
#[schema(example = json!({"room": "3.14", "mac": null}))]
pub struct UpdateMetadata(pub JsonObject);

/// Has a device found under a word.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct TagDevice {
    /// Which.
    pub tag: Tag,
}

/// Has it found under a word no longer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct UntagDevice {
    /// Which.
    pub tag: Tag,
}

/// Puts a device into a group, or into none.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({"group": "vienna"}))]
pub struct AssignGroup {
    /// Which; `null`: none.
    #[serde(deserialize_with = "removable")]
    #[schema(value_type = Option<GroupName>)]
    pub group: Option<Option<GroupName>>,
}

/// Gives a device another secret, which was drawn already. The old one is good for a while.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RotateCredential {
    /// Where the hash of the new secret is.
    pub credential: Uuid,
    /// For how many seconds the old secret is good beside it.
    pub grace_seconds: u32,
}

/// Says how a device should be: a merge patch (RFC 7396) of what it should be already.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(transparent)]
#[schema(example = json!({"interval_s": 60, "led": "off"}))]
pub struct SetDesiredState(pub JsonObject);

/// A device says how it is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({"seq": 1, "state": {"interval_s": 60}}))]
pub struct ReportState {
    /// The how-manieth report it is, by the device's own count; one that is not higher than the last changes nothing.
    #[schema(minimum = 1)]
    pub seq: i64,
    /// What has changed (RFC 7396).
    #[schema(value_type = Object)]
    pub state: JsonObject,
}

/// Asks a device to do something.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({"id": "01900000-0000-7000-8000-000000000004", "method": "reboot", "params": {"delay_s": 5}}))]
pub struct SendCommand {
    /// The command's id, if the client chooses one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<Uuid>,
    /// What.
    pub method: Method,
    /// With what.
    #[serde(default)]
    #[schema(value_type = Object)]
    pub params: JsonObject,
    /// Until when; for an hour, if nothing is said, and for 30 days at most.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<Instant>,
}

/// A device says what became of what it was asked to do.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({"command": "01900000-0000-7000-8000-000000000004", "outcome": "done", "result": {"uptime_s": 3}}))]
pub struct AcknowledgeCommand {
    /// Which.
    pub command: Uuid,
    /// Whether it was done.
    pub outcome: Outcome,
    /// What there is to say of it.
    #[serde(default)]
    #[schema(value_type = Object)]
    pub result: JsonObject,
}

/// Ends a command that was not done in time.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ExpireCommand {
    /// Which.
    pub command: Uuid,
}

crate::bare_commands! {
    /// Lets a device work. It takes one of the plan's devices.
    AcceptDevice
    /// Looks at a device once more that was not accepted.
    ReconsiderDevice
    /// Lets a device work again.
    EnableDevice
    /// Has a device not work for now. It keeps its place in the plan.
    DisableDevice
    /// Ends a device for good: its secrets open nothing, and it gives back what it took of the plan.
    DecommissionDevice
    /// Ends a device's secrets, the old ones too.
    RevokeCredential
}

crate::commands! { "device":
    Preregister(PreregisterDevice) "preregister", "register";
    Register(RegisterDevice) "register", "register";
    Claim(ClaimDevice) "claim", "claim";
    Accept(AcceptDevice) "accept", "accept";
    Reject(RejectDevice) "reject", "accept";
    Reconsider(ReconsiderDevice) "reconsider", "accept";
    Enable(EnableDevice) "enable", "manage";
    Disable(DisableDevice) "disable", "manage";
    Quarantine(QuarantineDevice) "quarantine", "manage";
    Decommission(DecommissionDevice) "decommission", "manage";
    UpdateMetadata(UpdateMetadata) "update_metadata", "manage";
    Tag(TagDevice) "tag", "manage";
    Untag(UntagDevice) "untag", "manage";
    AssignGroup(AssignGroup) "assign_group", "manage";
    RotateCredential(RotateCredential) "rotate_credential", "manage_credential";
    RevokeCredential(RevokeCredential) "revoke_credential", "manage_credential";
    SetDesiredState(SetDesiredState) "set_desired_state", "control";
    ReportState(ReportState) "report_state", "report";
    SendCommand(SendCommand) "send_command", "control";
    AcknowledgeCommand(AcknowledgeCommand) "acknowledge_command", "report";
    ExpireCommand(ExpireCommand) "expire_command", "expire_command";
}

crate::errors! {
    /// Why a device refuses.
    Error {
        /// There is none.
        NotFound: NotFound "device.not_found", "there is no such device";
        /// The id is in use.
        AlreadyExists: Conflict "device.already_exists", "a device with this id exists already";
        /// Another device has the serial number.
        SerialTaken: Conflict "device.serial_taken", "another device of the tenant has this serial number";
        /// The status does not allow it.
        NotWhile {
            /// The command.
            command: &'static str,
            /// The status.
            status: Status,
        }: Conflict "device.cannot_while", "{command} does not go while the device is {status}";
        /// The code is not that of a device that is expected.
        NoSuchClaim: NotFound "device.no_such_claim", "no device is expected with this code";
        /// Only the device itself says this.
        DeviceOnly: Forbidden "device.device_only", "only the device itself says this, with its own credential";
        /// An old secret lives 7 days at most.
        GraceTooLong: Invalid "device.grace_too_long", "the old secret can be good for 7 days at most";
        /// No more tags.
        TooManyTags: Conflict "device.too_many_tags", "a device has 50 tags at most";
        /// Something would become too large.
        TooLarge {
            /// What.
            what: &'static str,
        }: Invalid "device.too_large", "{what} would be larger than 64 KiB";
        /// A report that counts from nowhere.
        BadSequence: Invalid "device.bad_sequence", "a report's seq is 1 or more";
        /// The command has this id already.
        CommandExists: Conflict "device.command_exists", "the device was sent a command with this id already";
        /// Too many commands wait.
        TooManyCommands: Conflict "device.too_many_commands", "100 commands wait for the device already";
        /// It was to end before it began, or too late.
        BadExpiry: Invalid "device.bad_expiry", "a command expires within the next 30 days";
        /// There is no such command.
        NoSuchCommand: NotFound "device.no_such_command", "the device was sent no such command";
        /// It came too late.
        CommandExpired: Conflict "device.command_expired", "the command has expired";
        /// It has not yet.
        CommandNotDue: Conflict "device.command_not_due", "the command has not expired";
    }
    code Self::NotWhile { command, status } => format!("device.cannot_{command}_while_{status}");
}
