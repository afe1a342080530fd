// SPDX-License-Identifier: Apache-2.0
#include "core/config.h"

#include <algorithm>
#include <bit>
#include <map>
#include <set>
#include <string_view>
#include <utility>

#include "core/config_agent.h"
#include "core/config_gateways.h"
#include "core/config_values.h"
#include "core/json_reader.h"
#include "core/mark.h"
#include "util/text.h"

namespace egressclass {
namespace {

constexpr std::size_t kMaxClassName = 63;
constexpr int kMinMaskBits = 4;
constexpr std::uint32_t kMaxVni = 0xfffffe;  // 24 bits; the highest value is no network by convention

constexpr std::string_view kAlnum = "abcdefghijklmnopqrstuvwxyz0123456789";
constexpr std::string_view kNameChars = "abcdefghijklmnopqrstuvwxyz0123456789-.";

bool consists_of(std::string_view text, std::string_view chars) {
  return text.find_first_not_of(chars) == std::string_view::npos;
}

bool valid_class_name(std::string_view name) {
  return !name.empty() && name.size() <= kMaxClassName && consists_of(name, kNameChars) &&
         consists_of(name.substr(0, 1), kAlnum) && consists_of(name.substr(name.size() - 1), kAlnum);
}

// FNV-1a folded to 24 bits: every node, and every version of this program, has to get the same one.
std::uint32_t default_vni(const std::string& name) {
  std::uint32_t hash = 2166136261U;
  for (const char c : name) hash = (hash ^ static_cast<unsigned char>(c)) * 16777619U;
  return std::clamp((hash >> 24U) ^ (hash & 0xffffffU), 1U, kMaxVni);
}

// Reads the file from the top. What classes are checked against (mask, cluster, nodes) is read ahead of them;
// what must not occur twice is noted with its first owner.
class ConfigReader {
 public:
  explicit ConfigReader(const Field& root) : root_(root) {}
  Config read();

 private:
  void read_mask(const Field& field);
  void read_tunnel(const Field& field);
  void read_class(const Field& field);
  void read_name(const Field& field, ClassConfig* c);
  void read_default(const Field& field, ClassConfig* c);
  void read_mark(const Field& field, ClassConfig* c);
  void claim_vni(const Field& field, std::optional<std::uint32_t> vni, ClassConfig* c);

  Field root_;
  Config config_;
  std::set<std::string> names_;
  std::string default_class_;
  std::map<std::uint32_t, std::string> marks_;
  std::map<std::uint32_t, std::string> vnis_;
  GatewayReader gateways_{config_.cluster_cidrs, config_.nodes};
};

Config ConfigReader::read() {
  if (!root_.is_object_of({"classes", "clusterCIDRs", "nodes", "annotations", "markMask", "tunnel", "audit"}))
    return {};
  const auto classes = root_.required("classes");
  const std::vector<Field> class_fields = classes ? classes->items() : std::vector<Field>();
  const bool any_class = !class_fields.empty();

  if (const auto field = root_.member("markMask")) read_mask(*field);
  if (const auto field = root_.member("annotations")) config_.annotations = !read_choice(*field, "honour", "ignore");
  if (const auto field = root_.member("tunnel")) read_tunnel(*field);
  if (const auto field = root_.member("audit")) config_.audit = read_audit(*field);
  if (const auto field = root_.member("clusterCIDRs"))
    config_.cluster_cidrs = read_prefixes(*field, LoneAddress::kRefused, true);
  if (const auto field = any_class ? root_.required("nodes") : root_.member("nodes"))
    config_.nodes = read_prefixes(*field, LoneAddress::kAccepted, !any_class);

  if (const auto room = max_class_index(config_.mark_mask); class_fields.size() > room) {
    classes->refuse("has " + std::to_string(class_fields.size()) + " classes, and \"markMask\" " +
                    hex(config_.mark_mask) + " has room for " + std::to_string(room));
    return {};
  }
  for (const Field& field : class_fields) read_class(field);
  gateways_.check_egress_ips();
  return std::move(config_);
}

void ConfigReader::read_mask(const Field& field) {
  config_.mark_mask = field.bits().value_or(UINT32_MAX);  // of a bad mask: so that no class is blamed for it
  if (std::popcount(config_.mark_mask) >= kMinMaskBits) return;
  field.refuse("must have at least 4 bits");
  config_.mark_mask = UINT32_MAX;
}

void ConfigReader::read_tunnel(const Field& field) {
  if (!field.is_object_of({"port"})) return;
  if (const auto port_field = field.member("port"))
    if (const auto port = port_field->number(1, UINT16_MAX)) config_.tunnel_port = static_cast<std::uint16_t>(*port);
}

void ConfigReader::read_class(const Field& field) {
  if (!field.is_object_of({"name", "select", "default", "namespaces", "destinations", "except", "ports", "otherwise",
                           "otherFamily", "gateways", "egressIPs", "force", "spread", "onChange", "mark", "vni"}))
    return;
  ClassConfig c;
  const auto name = field.required("name");
  if (name) read_name(*name, &c);
  if (const auto key = field.member("select")) c.select = read_select(*key);
  if (const auto key = field.member("default")) read_default(*key, &c);
  if (const auto key = field.member("namespaces")) c.entitled = read_patterns(*key);
  const auto ports = field.member("ports");
  const std::vector<PortRule> rules = ports ? read_ports(*ports) : std::vector<PortRule>();
  if (const auto key = field.required("destinations")) c.destinations = read_destinations(*key, rules);
  if (const auto key = field.member("except")) c.except = read_except(*key, c.destinations);
  if (const auto key = field.member("otherwise")) c.otherwise_drop = read_choice(*key, "bypass", "drop");
  if (const auto key = field.member("otherFamily")) c.other_family_bypass = read_choice(*key, "drop", "bypass");
  c.gateways = gateways_.read(field);
  if (const auto key = field.member("force")) c.force = key->boolean().value_or(false);
  if (const auto key = field.member("spread")) c.spread_flows = read_choice(*key, "pod", "flow");
  if (const auto key = field.member("onChange")) c.keep_flows = !read_choice(*key, "keep", "cut");
  if (const auto key = field.member("mark")) read_mark(*key, &c);
  if (const auto key = field.member("vni"))
    claim_vni(*key, key->number(1, kMaxVni), &c);
  else if (!c.name.empty())
    claim_vni(*name, default_vni(c.name), &c);
  config_.classes.push_back(std::move(c));
}

void ConfigReader::read_name(const Field& field, ClassConfig* c) {
  const auto name = field.text();
  if (!name) return;
  if (!valid_class_name(*name))
    return field.refuse("must be 1 to 63 characters a-z 0-9 - . that begin and end with a letter or digit");
  if (!names_.insert(*name).second) return field.refuse("is the name of another class already");
  c->name = *name;
}

void ConfigReader::read_default(const Field& field, ClassConfig* c) {
  c->is_default = field.boolean().value_or(false);
  if (!c->is_default) return;
  if (default_class_.empty())
    default_class_ = in_quotes(c->name);
  else
    field.refuse("class " + default_class_ + " is the default already");
}

void ConfigReader::read_mark(const Field& field, ClassConfig* c) {
  const std::uint32_t mask = config_.mark_mask;
  const auto mark = field.bits();
  if (!mark) return;
  if (*mark == 0) return field.refuse("must not be 0: that is the mark of pods without a class");
  if ((*mark & ~mask) != 0) return field.refuse("has bits outside of \"markMask\" " + hex(mask));
  if (extract_bits(*mark, mask) > max_class_index(mask))
    return field.refuse(
        "is reserved: classes may not have the highest bit, nor the four highest values of the rest, of "
        "\"markMask\" " +
        hex(mask));
  const auto [owner, is_new] = marks_.try_emplace(*mark, c->name);
  if (!is_new) return field.refuse("overlaps the mark of class " + in_quotes(owner->second));
  c->mark = *mark;
}

void ConfigReader::claim_vni(const Field& field, std::optional<std::uint32_t> vni, ClassConfig* c) {
  if (!vni) return;
  const auto [owner, is_new] = vnis_.try_emplace(*vni, c->name);
  if (!is_new)
    field.refuse("class " + in_quotes(c->name) + " would have the VNI " + std::to_string(*vni) + " of class " +
                 in_quotes(owner->second) + ": set another \"vni\" on one of them");
  c->vni = *vni;
}

}  // namespace

const ClassConfig* Config::find(const std::string& name) const {
  const auto found = std::find_if(classes.begin(), classes.end(), [&](const ClassConfig& c) { return c.name == name; });
  return found == classes.end() ? nullptr : &*found;
}

std::optional<Config> parse_config(const std::string& text, std::vector<ConfigProblem>* problems) {
  problems->clear();
  std::vector<std::string> duplicates;
  const Result<Json> json = parse_json(text, &duplicates);
  if (!json) {
    problems->push_back({json.error().msg, "", json.error().details});
    return {};
  }
  for (const std::string& path : duplicates) problems->push_back({printable(path), "", "the key is there twice"});
  Config config = ConfigReader(Field(*json, "", *problems)).read();
  if (!problems->empty()) return {};
  return config;
}

std::string format_problems(const std::string& file, const std::vector<ConfigProblem>& problems) {
  std::string text;
  for (const ConfigProblem& problem : problems) {
    text += file + ": ";
    if (!problem.path.empty()) text += problem.path + ": ";
    if (!problem.value.empty()) text += problem.value + ": ";
    text += problem.reason + '\n';
  }
  return text;
}

}  // namespace egressclass
