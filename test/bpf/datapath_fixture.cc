// SPDX-License-Identifier: Apache-2.0
#include "datapath_fixture.h"

#include <arpa/inet.h>
#include <bpf/bpf.h>
#include <bpf/libbpf.h>
#include <fcntl.h>
#include <linux/if_ether.h>
#include <net/if.h>
#include <netinet/in.h>
#include <netpacket/packet.h>
#include <poll.h>
#include <sched.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <filesystem>
#include <fstream>
#include <stdexcept>
#include <thread>

#include "core/config.h"
#include "core/mark.h"
#include "datapath/gateway_rules.h"
#include "datapath/in_netns.h"
#include "datapath/plan_maps.h"
#include "datapath/rulesets.h"

// Generated; needs the libbpf headers above it. NOLINTNEXTLINE
#include "egressclass.skel.h"

namespace egressclass {
namespace {

using std::chrono::milliseconds;

constexpr std::uint16_t kTunnelPort = 8479;
constexpr milliseconds kArrival{1000};  // of what must come
constexpr milliseconds kMoment{15};     // of what must not
constexpr unsigned kTunnelMtu = 1450;

// Marks and VNIs: see the constants of the same names.
constexpr const char* kClasses = R"(
    {"name": "tunnel", "mark": "0x105", "vni": 66051, "egressIPs": ["203.0.113.21"],
     "destinations": ["0.0.0.0/0", "::/0", "10.99.0.0/16"], "except": ["10.0.0.0/8", "10.99.7.0/24", "fd00::/8"],
     "gateways": [{"address": "192.0.2.21"}]},
    {"name": "local", "mark": "0x2", "vni": 658188, "egressIPs": ["203.0.113.31"],
     "destinations": ["198.51.100.0/24", "::/0"], "except": ["198.51.100.128/25"],
     "gateways": [{"address": "192.0.2.31"}]},
    {"name": "other", "mark": "0x3", "vni": 131844, "egressIPs": ["203.0.113.21"], "destinations": ["0.0.0.0/0"],
     "gateways": [{"address": "192.0.2.21"}]})";

std::string with_classes(const std::string& classes) {
  return R"({"markMask": "0x1f7f",
             "clusterCIDRs": ["10.244.0.0/16", "100.64.0.0/16", "fd00:244::/32", "2001:db8:3::/48"],
             "nodes": ["192.0.2.8/29", "192.0.2.16/28", "2001:db8:2::/64"],
             "classes": [)" +
         classes + "]}";
}

// Newer than Debian 12's headers.
constexpr auto kTcxIngress = static_cast<bpf_attach_type>(46);
constexpr auto kTcxEgress = static_cast<bpf_attach_type>(47);
constexpr int kPacketIgnoreOutgoing = 23;

void require(bool good, const std::string& what) {
  if (!good) throw std::runtime_error(what + ": " + std::strerror(errno));
}

void shell(const std::string& command) {
  // The tests' own constants. NOLINTNEXTLINE(bugprone-command-processor,cert-env33-c)
  require(std::system(command.c_str()) == 0, "failed: " + command);
}

Fd open_own_netns() {
  Fd fd(::open("/proc/self/ns/net", O_RDONLY | O_CLOEXEC));
  require(static_cast<bool>(fd), "cannot open the network namespace");
  return fd;
}

/// By which other programs find it.
std::string path_of(const Fd& fd) { return "/proc/" + std::to_string(::getpid()) + "/fd/" + std::to_string(fd.get()); }

void write_text(const std::string& path, const char* text) { std::ofstream(path) << text; }

/// A new network namespace, in which the thread then is. IPv6 has no addresses there but those that tests give it.
void enter_new_netns(bool ipv6) {
  require(::unshare(CLONE_NEWNET) == 0, "cannot make a network namespace (these tests need root)");
  for (const char* scope : {"all", "default"}) {
    write_text(std::string("/proc/sys/net/ipv6/conf/") + scope + "/disable_ipv6", ipv6 ? "0" : "1");
    write_text(std::string("/proc/sys/net/ipv6/conf/") + scope + "/addr_gen_mode", "1");
    write_text(std::string("/proc/sys/net/ipv6/conf/") + scope + "/accept_ra", "0");
    write_text(std::string("/proc/sys/net/ipv4/conf/") + scope + "/rp_filter", "0");
  }
  shell("ip link set lo up");
}

/// Pins where the product looks for them, and nobody else.
void enter_new_bpffs() {
  require(::unshare(CLONE_NEWNS) == 0 && ::mount("none", "/", nullptr, MS_REC | MS_PRIVATE, nullptr) == 0 &&
              ::mount("bpf", paths::kBpffs, "bpf", 0, nullptr) == 0,
          "cannot mount a bpffs of our own");
  std::filesystem::create_directories(paths::kMapPins);
}

template <class T>
T need(Result<T> result) {
  if (!result) throw std::runtime_error(result.error().msg + ": " + result.error().details);
  return std::move(*result);
}
void need(const Status& status) {
  if (!status) throw std::runtime_error(status.error().msg + ": " + status.error().details);
}

}  // namespace

const char* name_of(__u32 event) {
  switch (event) {
#define X(number, id, name) \
  case number:              \
    return name;
    EC_EVENTS(X)
#undef X
    default:
      return "?";
  }
}

std::uint32_t mark_of(std::uint32_t class_id) { return deposit_bits(class_id, kMask); }

std::uint32_t pending_mark_of(std::uint32_t class_id) { return mark_of(class_id) | pending_mark(kMask); }

Packet in_tunnel(Packet packet, const char* from, const char* to) {
  const auto mac = [](std::uint8_t second, const char* address) {
    const ec_ip ip = ec(address);
    const __u32 hash = ec_hash_ip(0, &ip);
    Mac address_of_end = {0x02, second};
    std::memcpy(address_of_end.data() + 2, &hash, sizeof(hash));
    return address_of_end;
  };
  return packet.from(mac(0xed, from)).to(mac(0xec, to));
}

std::uint64_t monotonic_ns() {
  timespec now{};
  ::clock_gettime(CLOCK_MONOTONIC, &now);
  return static_cast<std::uint64_t>(now.tv_sec) * 1'000'000'000U + static_cast<std::uint64_t>(now.tv_nsec);
}

std::ostream& operator<<(std::ostream& out, Action action) {
  switch (action) {
    case Action::kNext:
      return out << "passed on";
    case Action::kDrop:
      return out << "dropped";
    case Action::kRedirect:
      return out << "redirected";
  }
  return out << "action " << static_cast<int>(action);
}

std::ostream& operator<<(std::ostream& out, const Count& count) {
  return out << "class " << count.class_id << " " << name_of(count.event) << ": " << count.packets << " packets, "
             << count.bytes << " bytes";
}

// --- packet sockets ----------------------------------------------------------------------------------------------

PacketSocket::PacketSocket(const std::string& interface)
    : ifindex_(static_cast<int>(::if_nametoindex(interface.c_str()))),
      fd_(::socket(AF_PACKET, SOCK_RAW | SOCK_CLOEXEC, htons(ETH_P_ALL))) {
  sockaddr_ll address{};
  address.sll_family = AF_PACKET;
  address.sll_protocol = htons(ETH_P_ALL);
  address.sll_ifindex = ifindex_;
  const int on = 1;
  require(fd_ && ::setsockopt(fd_.get(), SOL_PACKET, kPacketIgnoreOutgoing, &on, sizeof(on)) == 0 &&
              ::bind(fd_.get(), reinterpret_cast<const sockaddr*>(&address), sizeof(address)) == 0,
          "cannot open a packet socket on " + interface);
}

void PacketSocket::send(const Bytes& frame, std::uint32_t mark) const {
  require(::setsockopt(fd_.get(), SOL_SOCKET, SO_MARK, &mark, sizeof(mark)) == 0, "cannot set a socket's mark");
  // What the program drops is ENOBUFS here.
  require(::send(fd_.get(), frame.data(), frame.size(), 0) >= 0 || errno == ENOBUFS, "cannot send a frame");
}

std::optional<Frame> PacketSocket::receive(milliseconds timeout) const {
  pollfd wait{.fd = fd_.get(), .events = POLLIN, .revents = 0};
  if (::poll(&wait, 1, static_cast<int>(timeout.count())) <= 0) return std::nullopt;
  Bytes bytes(65536);
  sockaddr_ll sender{};
  socklen_t sender_size = sizeof(sender);
  const auto size =
      ::recvfrom(fd_.get(), bytes.data(), bytes.size(), 0, reinterpret_cast<sockaddr*>(&sender), &sender_size);
  if (size < 0) return std::nullopt;
  bytes.resize(static_cast<std::size_t>(size));
  return Frame{std::move(bytes), sender.sll_pkttype == PACKET_HOST};
}

std::vector<Frame> PacketSocket::receive_all() const {
  std::vector<Frame> frames;
  while (auto frame = receive(kMoment)) frames.push_back(std::move(*frame));
  return frames;
}

// --- the node ----------------------------------------------------------------------------------------------------

void Node::Unload::operator()(egressclass_bpf* skeleton) const { egressclass_bpf__destroy(skeleton); }

Node::Node() {
  enter_new_bpffs();
  make_devices();
  skeleton_.reset(egressclass_bpf__open_and_load());
  require(skeleton_ != nullptr, "cannot load the programs");
  const bpf_map* map = nullptr;
  bpf_object__for_each_map(map, skeleton_->obj) if (!bpf_map__is_internal(map))
      require(bpf_obj_pin(bpf_map__fd(map), (std::string(paths::kMapPins) + "/" + bpf_map__name(map)).c_str()) == 0,
              "cannot pin a map");
  attach(Program::kClassify, "pod0");
  attach(Program::kClassify, "pod1");
  attach(Program::kTunnelIn, "egress0");
  attach(Program::kTunnelOut, "egress0");
  attach(Program::kNexthopIn, "outside");
  attach(Program::kUplinkIn, "uplink");
  attach(Program::kUplinkIn, "outside");
  attach(Program::kGatewayOut, "ec0");
  const InNetns there = need(InNetns::enter(gateway_netns_, "ec1"));
  attach(Program::kGatewayIn, "ec1");
}

Node::~Node() = default;

void Node::make_devices() {
  enter_new_netns(false);
  const Fd far = open_own_netns();
  enter_new_netns(true);
  gateway_netns_ = open_own_netns();
  enter_new_netns(true);
  const Fd here = open_own_netns();
  write_text("/proc/sys/net/ipv4/ip_forward", "1");
  write_text("/proc/sys/net/ipv6/conf/all/forwarding", "1");

  const std::vector<std::string> devices = {"pod0", "pod1", "uplink", "outside"};
  const std::string far_path = path_of(far);
  for (const std::string& device : devices) {
    std::string add = "ip link add " + device;
    add.append(" type veth peer name ").append(device).append(" netns ").append(far_path);
    shell(add);
    shell("ip link set " + device + " up");
  }
  require(::setns(far.get(), CLONE_NEWNET) == 0, "cannot enter the far namespace");
  for (const std::string& device : devices) {
    // Has a say in what the receiving stack takes as its own.
    if (device == "pod0") shell("ip link set pod0 address " + mac_text(kPodMac));
    shell("ip link set " + device + " up");
    far_.emplace(device, device);
  }
  require(::setns(here.get(), CLONE_NEWNET) == 0, "cannot go back from the far namespace");

  // What the kernel has to say by itself, about its groups and neighbours, and any marked packet that it makes.
  shell("nft 'table inet test { chain output { type filter hook output priority 0; ip6 daddr ff00::/8 drop; " +
        ("meta mark & " + std::to_string(kMask)) + " != 0 drop; }; }'");
  shell("ip link set uplink address " + mac_text(kUplinkMac));
  shell("ip link set outside address " + mac_text(kOutsideMac));
  for (const char* address : {kUnderlay, kSecondAddress, kUnderlay6})
    shell(std::string("ip addr add dev uplink ") + address + (Ip::parse(address)->is_v4() ? "/24" : "/64 nodad"));
  const auto add_neighbour = [](const char* device, const char* address) {
    shell(std::string("ip neigh add dev ") + device + " lladdr " + mac_text(kNextHopMac) + " nud permanent " + address);
  };
  for (const char* address :
       {kGateway, kGateway2, kGateway3, kGateway4, kWorker, kSecondWorker, kStranger, kGateway6, kWorker6})
    add_neighbour("uplink", address);
  for (const char* address : {kNextHop, kNextHop6}) add_neighbour("outside", address);
  write_text("/proc/sys/net/ipv4/neigh/outside/mcast_solicit", "1");  // later ones would come into other tests
  for (const char* prefix : {"203.0.113.0/24", "2001:db8:113::/64"})
    shell(std::string("ip route add dev outside ") + prefix);

  shell("ip link add egress0 address " + mac_text(kTunnelDeviceMac) + " type vxlan external nolearning dstport " +
        std::to_string(kTunnelPort));
  shell("ip link set egress0 arp off mtu " + std::to_string(kTunnelMtu) + " up");
  egress0_.emplace("egress0");

  make_gateway();
  for (const auto& [prefix, next_hop] : {std::pair("198.51.100.0/24", kNextHop), {"2001:db8:51::/64", kNextHop6}})
    shell(std::string("ip route add ") + prefix + " via " + next_hop + " dev outside");
}

/// As the product's gateway_netns.cc. What is not said here holds by enter_new_netns().
void Node::make_gateway() {
  const std::string mac = mac_text(kInsideMac);
  shell("ip link add ec0 address " + mac + " type veth peer name ec1 address " + mac + " netns " +
        path_of(gateway_netns_));
  shell("ip link set ec0 arp off up");
  const InNetns there = need(InNetns::enter(gateway_netns_, "ec1"));
  write_text("/proc/sys/net/ipv4/ip_forward", "1");
  write_text("/proc/sys/net/ipv6/conf/all/forwarding", "1");
  for (const char* scope : {"all", "default", "ec1"})
    write_text(std::string("/proc/sys/net/ipv4/conf/") + scope + "/send_redirects", "0");
  shell("ip link set ec1 arp off up");
  inside_.emplace("ec1");
  for (const auto& [family, hop] : {std::pair("-4", "192.0.0.9"), {"-6", "fe80::1"}}) {
    const std::string ip = std::string("ip ") + family;
    const std::string route = ip + " route add default via " + hop + " dev ec1 onlink";
    shell(route);
    shell(route + " mtu " + std::to_string(kTunnelMtu) + " table 8479");
    shell(ip + " rule add fwmark 0x80000000/0xffffffff lookup 8479");
  }
  // All that may be egress IPs.
  for (const char* prefix : {"203.0.113.0/24", "2001:db8:113::/64"})
    shell(std::string("ip route add local ") + prefix + " dev lo");
}

int Node::program_fd(Program program) const {
  switch (program) {
    case Program::kClassify:
      return bpf_program__fd(skeleton_->progs.classify);
    case Program::kClassifyAgain:
      return bpf_program__fd(skeleton_->progs.classify_again);
    case Program::kTunnelIn:
      return bpf_program__fd(skeleton_->progs.tunnel_in);
    case Program::kTunnelOut:
      return bpf_program__fd(skeleton_->progs.tunnel_out);
    case Program::kNexthopIn:
      return bpf_program__fd(skeleton_->progs.nexthop_in);
    case Program::kUplinkIn:
      return bpf_program__fd(skeleton_->progs.uplink_in);
    case Program::kGatewayIn:
      return bpf_program__fd(skeleton_->progs.gateway_in);
    case Program::kGatewayOut:
      return bpf_program__fd(skeleton_->progs.gateway_out);
  }
  return -1;
}

void Node::attach(Program program, const std::string& device) {
  links_.emplace_back(bpf_link_create(program_fd(program), ifindex(device),
                                      program == Program::kTunnelOut ? kTcxEgress : kTcxIngress, nullptr));
  require(static_cast<bool>(links_.back()), "cannot attach a program to " + device);
}

int Node::ifindex(const std::string& device) const { return static_cast<int>(::if_nametoindex(device.c_str())); }

std::optional<InNetns> Node::in(Where where) const {
  std::optional<InNetns> there;
  if (where == Where::kInside) there.emplace(need(InNetns::enter(gateway_netns_, "ec1")));
  return there;
}

int Node::map_fd(const char* name, std::size_t key_size, std::size_t value_size) const {
  const bpf_map* map = bpf_object__find_map_by_name(skeleton_->obj, name);
  if (map == nullptr || bpf_map__key_size(map) != key_size ||
      (value_size != 0 && bpf_map__value_size(map) != value_size))
    throw std::logic_error(std::string("no map with such keys and values: ") + name);
  return bpf_map__fd(map);
}

void Node::put_bytes(const char* map, const void* key, std::size_t key_size, const void* value,
                     std::size_t value_size) {
  require(bpf_map_update_elem(map_fd(map, key_size, value_size), key, value, BPF_ANY) == 0,
          std::string("cannot write to the map ") + map);
}

bool Node::find_bytes(const char* map, const void* key, std::size_t key_size, void* value,
                      std::size_t value_size) const {
  return bpf_map_lookup_elem(map_fd(map, key_size, value_size), key, value) == 0;
}

void Node::erase_bytes(const char* map, const void* key, std::size_t key_size) {
  require(bpf_map_delete_elem(map_fd(map, key_size, 0), key) == 0, std::string("nothing to erase in the map ") + map);
}

NodeFacts Node::facts() const {
  NodeFacts facts;
  for (const char* device : {"pod0", "pod1", "uplink", "outside"}) facts.interfaces[device] = ifindex(device);
  const int uplink = ifindex("uplink");
  for (const char* address : {kUnderlay, kSecondAddress, kUnderlay6}) {
    const Ip ip = Ip::parse(address).value();
    facts.addresses.push_back({.ifindex = uplink, .ip = ip, .prefix_length = ip.is_v4() ? 120U : 64U});
  }
  if (plan_) facts.previous = plan_->applied;
  return facts;
}

const Plan& Node::configure(const std::string& json) {
  std::vector<ConfigProblem> problems;
  const auto config = parse_config(json, &problems);
  auto plan = config ? make_plan(*config, facts(), &problems) : std::nullopt;
  if (!plan) throw std::invalid_argument(format_problems("configuration", problems));
  need(write_gateways(*plan));
  auto rulesets = need(RulesetChange::prepare(*plan));
  need(rulesets.write());
  need(write_classes(*plan, rulesets.numbers()));
  need(write_egress_ips(*plan));
  need(write_node(*plan, {.ifindex = ifindex("egress0"), .mtu = kTunnelMtu}, ifindex("ec0")));
  need(rulesets.remove_unused());
  need(apply_gateway_rules(gateway_netns_, *plan, kTunnelMtu));
  {
    // Rules of conntrack bring it into the namespace. The transport checksum of the tests' fragments is not right.
    const InNetns there = need(InNetns::enter(gateway_netns_, "ec1"));
    write_text("/proc/sys/net/netfilter/nf_conntrack_checksum", "0");
  }
  plan_ = std::move(plan);
  see_gateways();
  return *plan_;
}

std::uint32_t Node::configure_class(const std::string& members) {
  configure(with_classes(R"({"name": "tested", )" + members + "}"));
  put_pod("pod0", id_of("tested"));
  return id_of("tested");
}

std::uint32_t Node::id_of(const std::string& class_name) const { return plan_->applied.ids.at(class_name); }

void Node::put_rule(std::uint32_t ruleset, const char* prefix, ec_verdict verdict) {
  std::string why;
  const auto parsed = Prefix::parse(prefix, true, &why);
  if (!parsed) throw std::invalid_argument(why);
  const ec_rule_key key = {.prefixlen = 32 + parsed->length,
                           .tree = EC_TREE(ruleset, parsed->ip.is_v4() ? 1U : 0U),
                           .ip = to_ec(parsed->ip)};
  put("rules", key, ec_rule{.verdict = static_cast<__u32>(verdict), .port_set = 0});
}

void Node::set_applied(bool applied) {
  change<ec_node>("node", 0U, [&](ec_node& node) { node.applied = applied ? 1 : 0; });
}

void Node::cut_off_gateway() {
  change<ec_node>("node", 0U, [](ec_node& node) { node.gateway_ifindex = 0x7fffffff; });
}

void Node::track(const std::string& flow, Where where) {
  {
    const auto there = in(where);
    shell("conntrack -I " + flow + " --timeout 60 >/dev/null 2>&1");
  }
  see_gateways();  // that has taken its time
}

void Node::track(const std::vector<std::string>& flows, Where where) {
  {
    const auto there = in(where);
    // NOLINTNEXTLINE(bugprone-command-processor,cert-env33-c)
    std::FILE* input = ::popen("conntrack -R /dev/stdin >/dev/null 2>&1", "w");
    require(input != nullptr, "cannot run conntrack");
    for (const std::string& flow : flows) std::fputs(("-I " + flow + " --timeout 60\n").c_str(), input);
    require(::pclose(input) == 0, "conntrack does not take all of the flows");
  }
  see_gateways();
}

void Node::forget_flows() {
  for (const Where where : {Where::kHost, Where::kInside}) {
    const auto there = in(where);
    std::string flows = "0";  // or conntrack is not there yet
    std::ifstream("/proc/sys/net/netfilter/nf_conntrack_count") >> flows;
    if (flows != "0") shell("conntrack -F >/dev/null 2>&1");
  }
}

std::string Node::tracked(const std::string& flow, Where where) const {
  const auto there = in(where);
  // NOLINTNEXTLINE(bugprone-command-processor,cert-env33-c)
  std::FILE* output = ::popen(("conntrack -G " + flow + " 2>/dev/null").c_str(), "r");
  require(output != nullptr, "cannot run conntrack");
  std::string text;
  for (int c = std::fgetc(output); c != EOF; c = std::fgetc(output)) text.push_back(static_cast<char>(c));
  ::pclose(output);
  return text;
}

void Node::see_gateways() {
  for (const PlannedClass& c : plan_->classes)
    for (const PlannedHop& hop : c.hops)
      if (hop.path != Path::kLocal && find<ec_gateway>("gateways", to_ec(hop.address)))
        put("gateways", to_ec(hop.address),
            ec_gateway{.last_seen_ns = monotonic_ns(), .last_probe_ns = 0, .unanswered = 0, .pad = 0});
}

void Node::keep_hearing_gateways() {
  for (const PlannedClass& c : plan_->classes)
    for (const PlannedHop& hop : c.hops)
      if (const auto known = find<ec_gateway>("gateways", to_ec(hop.address));
          hop.path != Path::kLocal && known && known->unanswered < EC_PROBES_UNANSWERED)
        put("gateways", to_ec(hop.address),
            ec_gateway{.last_seen_ns = monotonic_ns(), .last_probe_ns = 0, .unanswered = 0, .pad = 0});
}

void Node::lose_gateway(const char* address) {
  put("gateways", ec(address),
      ec_gateway{.last_seen_ns = 0, .last_probe_ns = monotonic_ns(), .unanswered = EC_PROBES_UNANSWERED, .pad = 0});
}

void Node::put_pod(const std::string& device, std::uint32_t class_id) {
  const bool first = device == "pod0";
  const Mac mac = first ? kPodMac : kLocalPodMac;
  const Mac host_mac = first ? kPodHostMac : kLocalPodHostMac;
  const auto index = static_cast<__u32>(ifindex(device));
  ec_attachment attachment{};
  attachment.cookie = index;
  attachment.class_id = class_id;
  std::copy(mac.begin(), mac.end(), attachment.pod_mac);
  std::copy(host_mac.begin(), host_mac.end(), attachment.host_mac);
  put("attachments", index, attachment);
  ec_endpoint endpoint{};
  endpoint.cookie = index;
  endpoint.ifindex = index;
  endpoint.class_id = class_id;
  std::copy(mac.begin(), mac.end(), endpoint.pod_mac);
  std::copy(host_mac.begin(), host_mac.end(), endpoint.host_mac);
  for (const char* address : {first ? kPod : kLocalPod, first ? kPod6 : kLocalPod6})
    put("endpoints", ec(address), endpoint);
}

void Node::reset() {
  const bpf_map* map = nullptr;
  bpf_object__for_each_map(map, skeleton_->obj) {
    if (bpf_map__is_internal(map) || bpf_map__type(map) == BPF_MAP_TYPE_ARRAY) continue;
    Bytes key(bpf_map__key_size(map));
    while (bpf_map_get_next_key(bpf_map__fd(map), nullptr, key.data()) == 0)
      bpf_map_delete_elem(bpf_map__fd(map), key.data());
  }
  forget_flows();

  plan_.reset();
  configure(with_classes(kClasses));
  put_pod("pod0", kTunnelClass);
  put_pod("pod1", kLocalClass);

  for (const auto& [name, socket] : far_)
    while (socket.receive(milliseconds(0))) continue;
  while (inside_->receive(milliseconds(0))) continue;
}

Outcome Node::run(Program program, const Bytes& packet, int ifindex, std::uint32_t mark) const {
  __sk_buff context{};
  context.ifindex = static_cast<__u32>(ifindex);
  context.mark = mark;
  return run(program, packet, context);
}

Outcome Node::run(Program program, const Bytes& packet, const __sk_buff& before) const {
  __sk_buff context = before;
  Bytes out(packet.size() + 256);
  LIBBPF_OPTS(bpf_test_run_opts, options);
  options.data_in = packet.data();
  options.data_size_in = static_cast<__u32>(packet.size());
  options.data_out = out.data();
  options.data_size_out = static_cast<__u32>(out.size());
  options.ctx_in = options.ctx_out = &context;
  options.ctx_size_in = options.ctx_size_out = sizeof(context);
  options.repeat = 1;
  const auto there = in(program == Program::kGatewayIn ? Where::kInside : Where::kHost);
  require(bpf_prog_test_run_opts(program_fd(program), &options) == 0, "cannot run the program on the packet");
  out.resize(options.data_size_out);
  return Outcome{static_cast<Action>(options.retval), context.mark, std::move(out), {context.cb[0], context.cb[1]}};
}

Outcome Node::classify(const Packet& packet, const std::string& device, std::uint32_t mark) const {
  return run(Program::kClassify, packet.bytes(), ifindex(device), mark);
}

Outcome Node::gateway_in(const Outcome& led_in) const {
  return run(Program::kGatewayIn, led_in.data, inside().ifindex(), led_in.mark);
}

Outcome Node::gateway_out(const Packet& packet, std::uint32_t mark) const {
  return run(Program::kGatewayOut, packet.bytes(), ifindex("ec0"), mark);
}

std::string Node::gateway_of(const Outcome& outcome) const {
  if (outcome.action != Action::kRedirect) return "";
  for (const PlannedClass& c : plan_->classes)
    for (const PlannedHop& hop : c.hops) {
      const Bytes frame = in_tunnel(Packet(), hop.address.str().c_str(), hop.address.str().c_str()).bytes();
      if (std::equal(frame.begin(), frame.begin() + ETH_ALEN, outcome.data.begin())) return hop.address.str();
    }
  return "";
}

std::uint64_t Node::counted(ec_event event) const {
  std::uint64_t packets = 0;
  for (const Count& count : counts())
    if (count.event == event) packets += count.packets;
  return packets;
}

std::vector<Count> Node::counts() const {
  const int fd = map_fd("counters", sizeof(ec_counter_key), 0);
  std::vector<Count> counts;
  ec_counter_key key{};
  std::vector<ec_counter> cpus(static_cast<std::size_t>(libbpf_num_possible_cpus()));
  for (const void* last = nullptr; bpf_map_get_next_key(fd, last, &key) == 0; last = &key) {
    if (bpf_map_lookup_elem(fd, &key, cpus.data()) != 0) continue;
    Count count{key.class_id, key.event, 0, 0};
    for (const ec_counter& cpu : cpus) {
      count.packets += cpu.packets;
      count.bytes += cpu.bytes;
    }
    counts.push_back(count);
  }
  std::sort(counts.begin(), counts.end());
  return counts;
}

void Node::expect_counts(std::vector<Count> expected) const {
  const auto packets = [](const std::vector<Count>& counts) {
    std::uint64_t sum = 0;
    for (const Count& count : counts) sum += count.packets;
    return sum;
  };
  const auto deadline = std::chrono::steady_clock::now() + kArrival;
  while (packets(counts()) < packets(expected) && std::chrono::steady_clock::now() < deadline)
    std::this_thread::sleep_for(milliseconds(1));
  std::sort(expected.begin(), expected.end());
  EXPECT_EQ(counts(), expected);
}

void Node::send_tunneled(const char* sender, std::uint32_t vni, const Bytes& inner, const char* to) const {
  far("uplink").send(Packet()
                         .from(kNextHopMac)
                         .to(kUplinkMac)
                         .ip(sender, to)
                         .udp(50000, kTunnelPort)
                         .payload(vxlan(vni, inner))
                         .bytes());
}

std::optional<Tunneled> Node::next_tunneled() const {
  const auto frame = far("uplink").receive(kArrival);
  return frame ? open_vxlan(frame->bytes) : std::nullopt;
}

std::optional<Bytes> Node::next_outside() const {
  auto frame = far("outside").receive(kArrival);
  if (!frame) return std::nullopt;
  return std::move(frame->bytes);
}

namespace {
Packet sent(const Mac& mac, const char* v4, const char* v6, const char* dst) {
  return Packet().from(mac).to(kForeignMac).ip(Ip::parse(dst).value().is_v4() ? v4 : v6, dst);
}
}  // namespace

Packet pod_sends(const char* dst) { return sent(kPodMac, kPod, kPod6, dst); }

Packet local_pod_sends(const char* dst) { return sent(kLocalPodMac, kLocalPod, kLocalPod6, dst); }

namespace {
bool is_v4(const Bytes& frame) { return frame.at(12) == 0x08; }
}  // namespace

Routing::Routing(std::string object, std::string what) : object_(std::move(object)), what_(std::move(what)) {
  shell("ip " + object_ + " add " + what_);
}

Routing::~Routing() {
  // NOLINTNEXTLINE(bugprone-command-processor,cert-env33-c)
  if (std::system(("ip " + object_ + " del " + what_).c_str()) != 0) ADD_FAILURE() << "cannot remove: " << what_;
}

std::uint16_t source_port(const Bytes& frame) {
  const std::size_t ip_bytes = is_v4(frame) ? 20 : 40;
  const std::uint8_t protocol = frame.at(ETH_HLEN + (is_v4(frame) ? 9U : 6U));
  const bool icmp = protocol == IPPROTO_ICMP || protocol == IPPROTO_ICMPV6;
  const std::size_t at = ETH_HLEN + ip_bytes + (icmp ? 4U : 0U);
  return static_cast<std::uint16_t>(frame.at(at) << 8U | frame.at(at + 1));
}

void expect_translated(const Bytes& left, const Packet& sent, const char* egress_ip) {
  ASSERT_EQ(left.size(), sent.bytes().size());
  Packet expected = sent;
  expected.from(kOutsideMac).to(kNextHopMac).ttl(63).translated(egress_ip, source_port(left));
  EXPECT_EQ(hex_dump(left), hex_dump(expected.bytes()));
}

Packet outside_sends(const char* src, const char* dst) {
  return Packet().from(kNextHopMac).to(kOutsideMac).ip(src, dst);
}

DatapathTest::DatapathTest()
    : node_([]() -> Node& {
        static Node node;
        return node;
      }()) {
  node_.reset();
}

}  // namespace egressclass
