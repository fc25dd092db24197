//! A version that fails a fifth of its calls goes out to a twentieth of the devices.

use tokio::runtime::Builder;

use crate::Asked;
use crate::fleet::rollout::try_a_bad_canary;
use crate::harness::plugin_folder;

const DEVICES: usize = 1000;
const PERCENT: u8 = 5;

pub(crate) fn run(asked: &Asked) {
    let devices = asked.size("devices", DEVICES);
    Builder::new_multi_thread().enable_all().build().expect("a runtime").block_on(async move {
        let (data, plugins) = (tempfile::tempdir().expect("a folder"), plugin_folder(&["lock-door"]));
        let work = async move { try_a_bad_canary(data.path(), plugins.path(), devices, PERCENT).await };
        let tried = tokio::spawn(work).await.expect("no call is lost");
        println!(
            "{PERCENT}% of {devices} devices: {} got it, {} never saw it; withdrawn by itself {:.0?} after its first call, of its {} \
             calls {} failed ({})",
            tried.canaries,
            devices - tried.canaries,
            tried.caught_after,
            tried.calls,
            tried.failures,
            tried.reason
        );
    });
}
