"""Automatic device management by the Python SDK: a configuration that follows its devices."""

from azure.iot.hub import IoTHubConfigurationManager
from azure.iot.hub.models import (
    Configuration,
    ConfigurationContent,
    ConfigurationMetrics,
    ConfigurationQueriesTestInput,
    Twin,
)

from support import SERVICE_STRING, create_device, equal, main, query, refused, registry, until

configurations = IoTHubConfigurationManager(SERVICE_STRING)


def run():
    for device_id, site in [("chilled", "A"), ("warm", "B")]:
        create_device(device_id)
        registry.update_twin(device_id, Twin(tags={"site": site}), "*")
    wanted = Configuration(
        id="chiller",
        content=ConfigurationContent(device_content={"properties.desired.chiller": {"temperature": 66}}),
        target_condition="tags.site = 'A'",
        priority=10,
        labels={"version": "1"},
        metrics=ConfigurationMetrics(queries={"all": "SELECT deviceId FROM devices"}),
    )
    made = configurations.create_configuration(wanted)
    equal((made.id, made.priority, made.labels), ("chiller", 10, {"version": "1"}))
    assert made.etag and made.created_time_utc and made.last_updated_time_utc
    refused(409, configurations.create_configuration, wanted)

    until("the setting", lambda: desired("chilled").get("chiller") == {"temperature": 66})
    rows, _ = query("SELECT * FROM devices WHERE configurations.[[chiller]].status = 'Applied'")
    equal([row.device_id for row in rows], ["chilled"])
    counted = until("the counts", lambda: counts()[0] == {"targetedCount": 1, "appliedCount": 1} and counts())
    equal(counted[1], {"all": 2})

    # A device comes into its scope, and leaves it.
    registry.update_twin("warm", Twin(tags={"site": "A"}), "*")
    until("the other device", lambda: desired("warm").get("chiller") == {"temperature": 66})
    registry.update_twin("warm", Twin(tags={"site": "B"}), "*")
    until("its leaving", lambda: "chiller" not in desired("warm"))

    current = configurations.get_configuration("chiller")
    current.target_condition = "*"
    configurations.update_configuration(current, current.etag)
    until("all devices", lambda: desired("warm").get("chiller") == {"temperature": 66})
    refused(412, configurations.update_configuration, current, made.etag)

    tried = configurations.test_configuration_queries(
        ConfigurationQueriesTestInput(target_condition="tags.site =", custom_metric_queries={"bad": "SELECT"})
    )
    assert "parse failed" in tried.target_condition_error, tried.target_condition_error
    equal(list(tried.custom_metric_query_errors), ["bad"])

    equal([each.id for each in configurations.get_configurations(5)], ["chiller"])
    configurations.delete_configuration("chiller")
    equal(configurations.get_configurations(), [])
    refused(404, configurations.get_configuration, "chiller")
    refused(404, configurations.delete_configuration, "chiller")


def desired(device_id):
    return registry.get_twin(device_id).properties.desired


def counts():
    found = configurations.get_configuration("chiller")
    return found.system_metrics.results, found.metrics.results


main(run)
