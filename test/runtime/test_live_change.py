# SPDX-License-Identifier: Apache-2.0
"""A class's egress IP changes under traffic: flows with one source port for life follow, and are not black-holed."""
import copy
import subprocess
from contextlib import ExitStack

from labkit import CONFIGURATION
from traffic import BILLING, PYTHON, until

CHANGED = "203.0.113.9"
# One socket: conntrack would keep the old translation for as long as it sends.
CLIENT = """
import socket, time
client = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
client.bind(("", 5060))
client.settimeout(0.3)
while True:
    client.sendto(b"x\\n", ("198.51.100.10", 7001))
    try: print(client.recv(100).decode().split()[0], flush=True)
    except OSError: print("-", flush=True)
    time.sleep(0.05)
"""


def test_a_flow_with_a_fixed_port_follows_a_change_of_the_egress_ip(own_fleet, tmp_path):
    with ExitStack() as stack:
        logs = []
        for node in (own_fleet.node("worker1"), own_fleet.node("gateway1")):
            log = tmp_path / node.name
            file = stack.enter_context(log.open("w"))
            client = node.run_pod("sip", "billing").popen([*PYTHON, CLIENT], stdout=file, stderr=subprocess.STDOUT)
            stack.callback(client.crush)
            logs.append(log)
        for log in logs:
            until(lambda: log.read_text().splitlines().count(BILLING) >= 5, f"answers to {log.name}")

        changed = copy.deepcopy(CONFIGURATION)
        changed["classes"][0]["egressIPs"] = [CHANGED]
        own_fleet.configure(changed)
        own_fleet.apply()
        for log in logs:
            until(lambda: log.read_text().splitlines().count(CHANGED) >= 5, f"{log.name} to follow")
            assert set(log.read_text().split()) <= {BILLING, CHANGED, "-"}
    held = own_fleet.node("gateway1").run(["ip", "-n", "egressclass", "-br", "addr"]).stdout
    assert CHANGED in held and BILLING + "/" not in held
