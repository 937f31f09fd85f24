//! What Stripe's own library signs.

use std::process::Stdio;

use tokio::process::Command;

use crate::program;
use crate::site::Site;

const SECRET: &str = "whsec_of_the_test";

/// Signs a body with Stripe's own library, and has the library accept its own signature.
const SIGN: &str = "import sys, stripe
body, secret = sys.argv[1:3]
header = stripe.WebhookSignature.generate_signature_header(body, secret)
assert stripe.WebhookSignature.verify_header(body, header, secret, tolerance=300)
print(header, end='')";

#[tokio::test(flavor = "multi_thread")]
async fn what_stripes_own_library_signs_is_taken_in_and_what_it_would_refuse_is_refused() {
    let mut site = Site::new().await;
    site.environment.push(("TENURE_BILLING_STRIPE_KEY", "sk_test_unused".into()));
    site.environment.push(("TENURE_BILLING_STRIPE_WEBHOOK_SECRET", format!("whsec_older,{SECRET}")));
    let process = site.serve("api,relay");
    process.ready("ok").await;
    let sign = async |body: &str, secret: &str| {
        let output =
            Command::new(program("TENURE_TEST_PYTHON")).args(["-c", SIGN, body, secret]).stdin(Stdio::null()).output().await.unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    let send = async |body: &str, signature: &str| {
        let request = reqwest::Client::new().post(format!("{}/v1/billing/providers/stripe/events", process.base));
        let answer = request.header("stripe-signature", signature).header("content-type", "application/json").body(body.to_owned());
        answer.send().await.unwrap().status().as_u16()
    };
    // White space and letters that another encoder would write otherwise: the body counts as it came.
    let body = "{\n  \"id\": \"evt_1\", \"type\": \"customer.created\",\"created\":1767225600, \"data\": {\"object\": {\"name\": \"Zo\u{eb} \u{2713}\"}}}";
    assert_eq!(send(body, &sign(body, SECRET).await).await, 200);
    assert_eq!(send(body, &sign(body, "whsec_older").await).await, 200);
    assert_eq!(send(body, &sign(body, "whsec_other").await).await, 400);
    assert_eq!(send(&body.replace("evt_1", "evt_2"), &sign(body, SECRET).await).await, 400);
}
