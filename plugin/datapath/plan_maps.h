// SPDX-License-Identifier: Apache-2.0
// What the programs read of a plan, beside its rulesets (rulesets.h): the maps `gateways`, `egress_ips`, `classes`,
// `vnis` and `node`.
#pragma once

#include <map>
#include <string>

#include "core/plan.h"
#include "datapath/tunnel.h"
#include "util/result.h"

namespace egressclass {

/// Gateways that are watched already keep what is known of them.
Status write_gateways(const Plan& plan);

/// `rulesets`: by the names of the classes. An entry that changes gets another generation; so flows notice.
Status write_classes(const Plan& plan, const std::map<std::string, std::uint32_t>& rulesets);

/// From now on what comes for one of these goes into the gateway's namespace.
Status write_egress_ips(const Plan& plan);

/// From now on the programs steer. `gateway_ifindex`: of ec0; 0: this node is no gateway.
Status write_node(const Plan& plan, const Tunnel& tunnel, int gateway_ifindex);

}  // namespace egressclass
