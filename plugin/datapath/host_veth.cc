// SPDX-License-Identifier: Apache-2.0
#include "datapath/host_veth.h"

#include <fcntl.h>
#include <linux/magic.h>
#include <sys/stat.h>
#include <sys/vfs.h>

#include <cerrno>

#include "cni/codes.h"

namespace egressclass {
namespace {

Error with_code(Error error, int code) {
  error.code = code;
  return error;
}

Error no_veth(const std::string& msg, const std::string& details) { return Error{codes::kNoHostVeth, msg, details}; }

}  // namespace

bool is_own_netns(const std::string& netns_path) {
  struct stat theirs {
  }, ours{};
  return ::stat(netns_path.c_str(), &theirs) == 0 && ::stat("/proc/thread-self/ns/net", &ours) == 0 &&
         theirs.st_ino == ours.st_ino && theirs.st_dev == ours.st_dev;
}

Result<PodInterface> find_pod_interface(const std::string& netns_path, const std::string& ifname) {
  const Fd netns(::open(netns_path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!netns)
    return with_code(system_error("cannot open the pod's network namespace", netns_path, errno), codes::kInvalidNetns);
  struct statfs fs {};
  if (::fstatfs(netns.get(), &fs) != 0 || fs.f_type != NSFS_MAGIC)
    return Error{codes::kInvalidNetns, "not a network namespace", netns_path + " is no file of nsfs"};

  auto host = Netlink::open();
  if (!host) return host.error();
  auto inside = Netlink::open_in(netns, netns_path);
  if (!inside) return with_code(inside.error(), codes::kInvalidNetns);

  auto pod_link = inside->link(ifname);
  if (!pod_link) return pod_link.error();
  if (!*pod_link) return no_veth("the pod has no interface " + ifname, "looked for it in " + netns_path);
  PodInterface found;
  found.pod = **pod_link;
  const Link& pod = found.pod;
  if (pod.kind != "veth" && pod.kind != "netkit")
    return no_veth("interface kind not supported: " + (pod.kind.empty() ? "physical device" : pod.kind),
                   ifname + " in " + netns_path +
                       " has no end in the host's namespace to attach the classifier to; egress classes work behind "
                       "main plugins that give pods a veth (bridge, ptp, flannel, Calico, ...)");

  // A number alone may clash: both ends have to name each other, and the namespace.
  auto host_link = host->link(pod.peer_ifindex);
  if (!host_link) return host_link.error();
  const bool own = is_own_netns(netns_path);
  auto nsid = own ? Result<int>(-1) : host->nsid(netns);
  if (!nsid) return nsid.error();
  if (!*host_link || (*host_link)->kind != pod.kind || (*host_link)->peer_ifindex != pod.ifindex ||
      (*host_link)->peer_nsid != *nsid || (*nsid < 0 && !own))
    return no_veth("the peer of " + ifname + " is not in the host's network namespace",
                   "peer index " + std::to_string(pod.peer_ifindex) + " of " + ifname + " in " + netns_path +
                       " leads to no " + pod.kind + " here whose peer is that interface");
  found.host = **host_link;

  auto addresses = inside->addresses(pod.ifindex);
  if (!addresses) return addresses.error();
  for (const InterfaceAddress& address : *addresses)
    if (!address.ip.is_link_local()) found.addresses.push_back(address.ip);
  return found;
}

}  // namespace egressclass
