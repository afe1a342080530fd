// SPDX-License-Identifier: Apache-2.0
#include "cni/result.h"

#include <initializer_list>

namespace egressclass::cni {
namespace {

bool is_0x(const std::string& version) { return version.starts_with("0."); }

// The objects of the list `key`; lists may be null, and their entries anything.
std::vector<Json*> objects_in(Json* result, const char* key) {
  std::vector<Json*> objects;
  const auto list = result->find(key);
  if (list == result->end() || !list->is_array()) return objects;
  for (Json& entry : *list)
    if (entry.is_object()) objects.push_back(&entry);
  return objects;
}

void drop(const std::vector<Json*>& objects, std::initializer_list<const char*> keys) {
  for (Json* object : objects)
    for (const char* key : keys) object->erase(key);
}

void add_ip_versions(Json* result) {
  for (Json* ip : objects_in(result, "ips"))
    if (const Json* address = find_member(*ip, "address"); address != nullptr && address->is_string())
      (*ip)["version"] = address->get_ref<const std::string&>().find(':') == std::string::npos ? "4" : "6";
}

bool is_container_interface(const Json& result, const Json& index, const std::string& ifname) {
  const Json* interfaces = find_member(result, "interfaces");
  if (interfaces == nullptr || !interfaces->is_array()) return false;
  if (!index.is_number_unsigned() || index.get<std::size_t>() >= interfaces->size()) return false;
  const Json& entry = (*interfaces)[index.get<std::size_t>()];
  const Json* name = find_member(entry, "name");
  const Json* sandbox = find_member(entry, "sandbox");
  return name != nullptr && *name == ifname && sandbox != nullptr && sandbox->is_string() &&
         !sandbox->get_ref<const std::string&>().empty();
}

}  // namespace

void convert_result(Json* result, const std::string& from, const std::string& to) {
  if (is_0x(from) && !is_0x(to)) drop(objects_in(result, "ips"), {"version"});
  if (!is_0x(from) && is_0x(to)) {
    add_ip_versions(result);
    drop(objects_in(result, "interfaces"), {"mtu", "socketPath", "pciID"});
    drop(objects_in(result, "routes"), {"mtu", "advmss", "priority", "table", "scope"});
  }
  (*result)["cniVersion"] = to;
}

std::vector<std::string> addresses_of(const Json& result, const std::string& ifname) {
  std::vector<std::string> addresses;
  const Json* ips = find_member(result, "ips");
  if (ips == nullptr || !ips->is_array()) return addresses;
  for (const Json& ip : *ips) {
    const Json* address = find_member(ip, "address");
    if (address == nullptr || !address->is_string()) continue;
    const Json* index = find_member(ip, "interface");
    if (index == nullptr || is_container_interface(result, *index, ifname))
      addresses.push_back(address->get<std::string>());
  }
  return addresses;
}

}  // namespace egressclass::cni
