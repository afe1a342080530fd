// SPDX-License-Identifier: Apache-2.0
// The gateways of all classes and their egress IPs: which IP is on which gateway, and that no two machines own one.
#pragma once

#include <map>
#include <optional>
#include <string>
#include <vector>

#include "core/config.h"
#include "core/ip.h"
#include "core/json_reader.h"

namespace egressclass {

class GatewayReader {
 public:
  /// Both have to outlive it, and to be complete before the first class.
  GatewayReader(const std::vector<Prefix>& cluster_cidrs, const std::vector<Prefix>& nodes)
      : cluster_cidrs_(cluster_cidrs), nodes_(nodes) {}

  /// The keys "gateways" and "egressIPs" of one class.
  std::vector<Gateway> read(const Field& class_field);
  /// After the last class: what an egress IP must not be may be in any of them.
  void check_egress_ips() const;

 private:
  struct EgressIp {
    Field field;
    Ip ip;
    std::optional<Ip> gateway;  ///< no value: not known, because something else is wrong
  };
  struct Claim {
    Via via;
    std::string path;
  };

  std::vector<Gateway> read_gateways(const Field& list);
  Gateway read_gateway(const Field& field, const std::vector<Gateway>& others);
  void check_address(const Field& field, const Gateway& gateway, const std::vector<Gateway>& others);
  static std::vector<EgressIp> read_egress_ips(const Field& list);
  static void give(EgressIp* egress_ip, Gateway* gateway);
  static void deal_out(const Field& class_field, std::vector<EgressIp>* shared, std::vector<Gateway>* gateways);
  void note(const std::vector<EgressIp>& ips) { egress_ips_.insert(egress_ips_.end(), ips.begin(), ips.end()); }

  const std::vector<Prefix>& cluster_cidrs_;
  const std::vector<Prefix>& nodes_;
  std::map<Ip, Claim> gateways_;
  std::vector<EgressIp> egress_ips_;
};

}  // namespace egressclass
