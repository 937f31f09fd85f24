//! Whatever is forgotten when an aggregate is added is named here.

use std::collections::BTreeSet;
use std::path::Path;

use domain::Aggregate;
use projections::ReadModel;

fn tags_and_commands() -> (BTreeSet<String>, BTreeSet<String>) {
    let openapi = serde_json::to_value(api::routes::openapi()).unwrap();
    let operations = openapi["paths"].as_object().unwrap().values().flat_map(|path| path.as_object().unwrap().values());
    let mut tags = BTreeSet::new();
    let mut bodies = BTreeSet::new();
    for operation in operations {
        tags.extend(operation["tags"].as_array().into_iter().flatten().map(|tag| tag.as_str().unwrap().to_owned()));
        let content = operation["requestBody"]["content"].as_object();
        bodies.extend(
            content
                .into_iter()
                .flat_map(|c| c.values())
                .filter_map(|c| c["schema"]["$ref"].as_str())
                .map(|r| r.rsplit('/').next().unwrap().to_owned()),
        );
    }
    (tags, bodies)
}

fn read_models_of(aggregate: &str) -> Vec<&'static str> {
    macro_rules! all {
        ($($model:ty,)*) => { [$((<<$model as ReadModel>::Aggregate as cqrs_es::Aggregate>::TYPE, <$model as ReadModel>::NAME)),*] };
    }
    projections::for_each_read_model!(all).into_iter().filter(|(of, _)| *of == aggregate).map(|(_, name)| name).collect()
}

fn missing<A: Aggregate>() -> Vec<String> {
    let name = A::TYPE;
    let mut missing = Vec::new();
    let mut need = |there: bool, what: String| {
        if !there {
            missing.push(format!("{name}: {what}"));
        }
    };
    // Subjects are `<tenant>.<aggregate>.<event>`: an event's stored name begins with its aggregate's, and has one more word.
    for kind in A::EVENTS {
        need(
            kind.name.strip_prefix(name).and_then(|rest| rest.strip_prefix('.')).is_some_and(|event| !event.contains('.')),
            format!("{} makes no subject", kind.name),
        );
        let event = kind.name.rsplit('.').next().unwrap_or_default();
        let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("../domain/tests/golden/{name}/{event}.v{}.json", kind.version));
        need(golden.exists(), format!("no golden file {}", golden.display()));
    }
    need(!read_models_of(name).is_empty(), "no read model".into());
    need(tags_and_commands().0.contains(&format!("{name}s")), format!("no OpenAPI tag `{name}s`"));
    missing
}

#[test]
fn every_aggregate_has_its_subjects_read_model_openapi_tag_and_golden_files() {
    macro_rules! all {
        ($($aggregate:ty,)*) => { [$(missing::<$aggregate>()),*].concat() };
    }
    let missing: Vec<String> = domain::for_each_aggregate!(all);
    assert!(missing.is_empty(), "{missing:#?}");
}

#[test]
fn the_completeness_test_can_fail() {
    // An aggregate that nobody registered anything for.
    assert!(read_models_of("nothing").is_empty());
    assert!(!tags_and_commands().0.contains("nothings"));
}

#[test]
fn every_command_of_a_tenant_that_people_may_send_is_an_operation() {
    let (_, bodies) = tags_and_commands();
    let wanted = [
        "ProvisionTenant",
        "CompleteProvisioning",
        "RenameTenant",
        "ChangeSlug",
        "UpdateSettings",
        "SetLlmConfig",
        "SetBranding",
        "SuspendTenant",
        "FreezeTenant",
        "DeactivateTenant",
        "CancelTenant",
        "ReactivateTenant",
        "DeleteTenant",
    ];
    assert_eq!(bodies, wanted.into_iter().map(str::to_owned).collect());
}
