// SPDX-License-Identifier: Apache-2.0
#include "core/config_gateways.h"

#include <algorithm>
#include <set>
#include <utility>

#include "core/config_values.h"
#include "egressclass.h"
#include "util/text.h"

namespace egressclass {
namespace {

const Prefix* covering(const std::vector<Prefix>& prefixes, const Ip& ip) {
  const auto found = std::ranges::find_if(prefixes, [&ip](const Prefix& p) { return p.contains(ip); });
  return found == prefixes.end() ? nullptr : &*found;
}

}  // namespace

std::vector<Gateway> GatewayReader::read(const Field& class_field) {
  const std::size_t problems = class_field.problem_count();
  const auto list = class_field.required("gateways");
  const auto shared_list = class_field.member("egressIPs");
  std::vector<Gateway> gateways = list ? read_gateways(*list) : std::vector<Gateway>();
  std::vector<EgressIp> shared = shared_list ? read_egress_ips(*shared_list) : std::vector<EgressIp>();
  if (class_field.problem_count() == problems)  // else nobody can say which gateway is to have which
    deal_out(class_field, &shared, &gateways);
  note(shared);
  return gateways;
}

std::vector<Gateway> GatewayReader::read_gateways(const Field& list) {
  const std::vector<Field> items = list.items(false);
  std::vector<Gateway> gateways;
  if (items.size() > EC_MAX_HOPS) {
    list.refuse("has " + std::to_string(items.size()) + " gateways, and there may be " + std::to_string(EC_MAX_HOPS));
    return gateways;
  }
  for (const Field& item : items)
    if (item.is_object_of({"address", "interface", "via", "egressIPs"}))
      gateways.push_back(read_gateway(item, gateways));
  return gateways;
}

Gateway GatewayReader::read_gateway(const Field& field, const std::vector<Gateway>& others) {
  Gateway gateway;
  bool good_via = true;
  if (const auto key = field.member("via")) {
    const auto via = key->text();
    good_via = via == "nexthop";
    gateway.via = Via::kNextHop;
    if (via && !good_via) key->refuse("must be \"nexthop\", or left out: then it is a gateway of ours");
  }
  if (const auto key = field.member("interface"))
    if (const auto name = key->text()) {
      if (!valid_ifname(*name)) key->refuse("is no name of an interface: 1 to 15 characters without blanks, / and :");
      gateway.interface = *name;
    }
  const auto address_key = field.required("address");
  const auto address = address_key ? read_host(*address_key) : std::nullopt;
  if (address) {
    gateway.address = *address;
    if (good_via) check_address(*address_key, gateway, others);
  }
  if (const auto key = field.member("egressIPs")) {
    std::vector<EgressIp> own = read_egress_ips(*key);
    if (good_via && gateway.via == Via::kNextHop)
      key->refuse("a next hop has no egress IPs of ours: it gets packets with the pod's address");
    else if (address)
      for (EgressIp& ip : own) give(&ip, &gateway);
    gateway.has_own_ips = true;
    note(own);
  }
  return gateway;
}

void GatewayReader::check_address(const Field& field, const Gateway& gateway, const std::vector<Gateway>& others) {
  const Ip& ip = gateway.address;
  if (gateway.via == Via::kGateway && !nodes_.empty() && covering(nodes_, ip) == nullptr)
    field.refuse("is not in \"nodes\": its tunnel packets would be refused");
  if (std::ranges::find(others, ip, &Gateway::address) != others.end())
    return field.refuse("is a gateway of this class already");
  const auto [first, is_new] = gateways_.try_emplace(ip, Claim{gateway.via, field.path()});
  if (!is_new && first->second.via != gateway.via)  // whether it answers is kept by its address
    field.refuse("is a next hop at one place and a gateway of ours at another: " + first->second.path);
}

std::vector<GatewayReader::EgressIp> GatewayReader::read_egress_ips(const Field& list) {
  std::set<Ip> seen;
  std::vector<EgressIp> ips;
  for (const Field& item : list.items(false))
    if (const auto ip = read_host(item)) {
      if (seen.insert(*ip).second)
        ips.push_back({item, *ip, {}});
      else
        item.refuse("is in this list already");
    }
  return ips;
}

// In order and each family for itself: to the first, the second, ..., then again to the first.
void GatewayReader::deal_out(const Field& class_field, std::vector<EgressIp>* shared, std::vector<Gateway>* gateways) {
  std::vector<Gateway*> takers;
  for (Gateway& gateway : *gateways)
    if (gateway.via == Via::kGateway && gateway.egress_ips.empty()) takers.push_back(&gateway);
  if (shared->empty() && !takers.empty())
    class_field.refuse_missing("egressIPs",
                               "required, but missing: gateway " + takers[0]->address.str() + " has none of its own");
  if (!shared->empty() && takers.empty())
    return class_field.member("egressIPs")->refuse("no gateway takes them: each has its own, or is a next hop");
  std::size_t dealt_v4 = 0;
  std::size_t dealt_v6 = 0;
  for (EgressIp& ip : *shared) {
    std::size_t& dealt = ip.ip.is_v4() ? dealt_v4 : dealt_v6;
    give(&ip, takers[dealt++ % takers.size()]);
  }
}

void GatewayReader::give(EgressIp* egress_ip, Gateway* gateway) {
  const bool v4 = egress_ip->ip.is_v4();
  egress_ip->gateway = gateway->address;
  const auto present = std::ranges::count_if(gateway->egress_ips, [v4](const Ip& ip) { return ip.is_v4() == v4; });
  if (present > EC_MAX_SLOTS) return;  // the one before has said it
  gateway->egress_ips.push_back(egress_ip->ip);
  if (present == EC_MAX_SLOTS)
    egress_ip->field.refuse("is one too many: gateway " + gateway->address.str() + " has " + std::to_string(present) +
                            (v4 ? " IPv4" : " IPv6") + " addresses in this class already, and may have no more");
}

void GatewayReader::check_egress_ips() const {
  std::map<Ip, const EgressIp*> owners;
  for (const EgressIp& egress_ip : egress_ips_) {
    const auto& [field, ip, gateway] = egress_ip;
    if (const Prefix* pods = covering(cluster_cidrs_, ip); pods != nullptr)
      field.refuse("is in \"clusterCIDRs\" " + pods->str() + ": a pod may use it");
    if (const Prefix* nodes = covering(nodes_, ip); nodes != nullptr)
      field.refuse("is in \"nodes\" " + nodes->str() + ": a node uses it");
    else if (const auto machine = gateways_.find(ip); machine != gateways_.end())
      field.refuse("is the address of a gateway, " + machine->second.path + ": that machine uses it");
    if (!gateway) continue;
    const EgressIp& first = *owners.try_emplace(ip, &egress_ip).first->second;
    if (first.gateway != gateway)
      field.refuse("is for gateway " + gateway->str() + " here, and by " + first.field.path() + " for gateway " +
                   first.gateway->str() + ": two machines would own it");
  }
}

}  // namespace egressclass
