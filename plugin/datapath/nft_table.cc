// SPDX-License-Identifier: Apache-2.0
#include "datapath/nft_table.h"

#include <nftables/libnftables.h>

#include <utility>

#include "util/c_handle.h"

namespace egressclass {
namespace {

using Context = CHandle<nft_ctx, nft_ctx_free>;

constexpr const char* kTable = "table inet egressclass";
constexpr unsigned kIpTcpHeaders = 40;
constexpr unsigned kIp6TcpHeaders = 60;

/// The output, with these flags.
Result<std::string> ask(const std::string& commands, unsigned flags) {
  const Context context(nft_ctx_new(NFT_CTX_DEFAULT));
  if (!context) return make_error("cannot use nftables", "no memory for its context");
  nft_ctx_output_set_flags(context.get(), flags);
  nft_ctx_buffer_output(context.get());
  nft_ctx_buffer_error(context.get());
  if (nft_run_cmd_from_buffer(context.get(), commands.c_str()) != 0)
    return make_error("nftables refused the change", nft_ctx_get_error_buffer(context.get()));
  return std::string(nft_ctx_get_output_buffer(context.get()));
}

}  // namespace

Status run_nft(const std::string& commands) {
  auto done = ask(commands, 0);
  return done ? Status(Ok{}) : Status(done.error());
}

Status remove_nft_table() {
  // `delete` of a missing table is an error, `add` of an existing one is not.
  return run_nft(std::string("add ") + kTable + "\ndelete " + kTable + "\n");
}

Result<std::map<std::string, NftCounter>> read_nft_counters() {
  auto listed = ask(std::string("list counters ") + kTable, NFT_CTX_OUTPUT_JSON);
  if (!listed) return listed.error();
  std::map<std::string, NftCounter> counters;
  auto json = parse_json(*listed);
  if (!json) return json.error();
  try {
    for (const Json& entry : json->at("nftables"))
      if (const Json* counter = find_member(entry, "counter"))
        counters[counter->at("name").get<std::string>()] = {counter->at("packets").get<std::uint64_t>(),
                                                            counter->at("bytes").get<std::uint64_t>()};
  } catch (const nlohmann::json::exception& e) {
    return make_error("unexpected output of nftables", e.what());
  }
  return counters;
}

std::optional<Json> list_nft_table() {
  auto listed = ask(std::string("list ") + kTable, NFT_CTX_OUTPUT_JSON | NFT_CTX_OUTPUT_STATELESS);
  if (!listed) return std::nullopt;
  auto json = parse_json(*listed);
  return json ? std::optional<Json>(std::move(*json)) : std::nullopt;
}

std::string with_values(std::string text, const std::map<std::string, std::string>& values) {
  for (const auto& [name, value] : values)
    for (std::size_t at = 0; (at = text.find(name, at)) != std::string::npos; at += value.size())
      text.replace(at, name.size(), value);
  return text;
}

std::string add_elements(const std::string& set, const std::vector<std::string>& elements) {
  std::string list;
  for (const std::string& element : elements) list.append(list.empty() ? "" : ", ").append(element);
  return list.empty() ? list : "add element inet egressclass " + set + " { " + list + " }\n";
}

std::string clamp_mss(const std::string& condition, unsigned mtu) {
  std::string lines;
  for (const auto& [family, headers] : {std::pair("ipv4", kIpTcpHeaders), std::pair("ipv6", kIp6TcpHeaders)})
    lines += "    " + condition + " meta nfproto " + family +
             " tcp flags & (syn | rst) == syn tcp option maxseg size set " + std::to_string(mtu - headers) + "\n";
  return lines;
}

}  // namespace egressclass
