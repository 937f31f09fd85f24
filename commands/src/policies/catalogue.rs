//! The plans that come with Tenure.

use domain::billing::plan::{Plan, shipped};
use domain::{Actor, StreamId, TenantId};

use crate::error::CommandError;
use crate::execute::{Executor, Request};

/// Defines the plans that come with Tenure, as far as they never were: what an operator has revised or retired stays so. Any number of processes may do so at once.
pub async fn install(executor: &Executor) -> Result<(), CommandError> {
    let plans = shipped().map_err(|error| CommandError::Internal(error.to_string()))?;
    for (id, plan) in plans {
        let stream = StreamId::new(TenantId::SYSTEM, id);
        let request = Request::<Plan>::new(stream, plan, Actor::system("catalogue"), executor.store().fresh_id());
        match executor.execute(request).await {
            Ok(_) => {}
            Err(CommandError::Rejected { code, .. }) if code == "plan.already_exists" || code == "plan.code_taken" => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
