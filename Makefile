# SPDX-License-Identifier: Apache-2.0
#
#   make            build everything            make demo       a fleet in namespaces shows that it works
#   make test       all four kinds of tests     make lint       formatting, clang-tidy, shellcheck
#   make deps       install what that needs     make install    DESTDIR= PREFIX= UNITS=
#   make fmt        format the sources          make dist       a tarball and a .deb in build/dist
#   make clean
#
#   make test-thorough, test-kernel, fuzz: what takes many minutes
#   make bench, bench-quick (the datapath beside others), bench-cni, bench-apply: what needs an idle machine
#
# V=1 shows the commands. Everything that is made goes to build/.

SHELL := /bin/bash
.DELETE_ON_ERROR:
.SECONDARY:
MAKEFLAGS += --no-builtin-rules

B      := build
PREFIX ?= /usr/local
UNITS  ?= /etc/systemd/system
CLANG  ?= clang
CXX    := g++
PYTHON := /usr/bin/python3
Q      := $(if $(V),,@)
say     = @$(if $(V),:,printf '  %-6s %s\n' $(1) $(2))

ARCH_INCLUDE := /usr/include/$(shell $(CXX) -print-multiarch 2>/dev/null || gcc -print-multiarch)

CPPFLAGS := -Iplugin -Ibpf -isystem $(B)/bpf -isystem /usr/include/libnl3 -MMD -MP
# -Wno-restrict: GCC 12 warns of std::string's own operator+ (GCC bug 105651).
CXXFLAGS := -std=c++20 -O2 -g -fstack-protector-strong -Wall -Wextra -Wshadow -Wconversion -Werror -Wno-restrict \
            -ffile-prefix-map=$(CURDIR)=. $(EXTRA_CXXFLAGS)
BPFFLAGS := -O2 -g -target bpf -mcpu=v3 -Wall -Wextra -Werror -idirafter $(ARCH_INCLUDE) \
            -ffile-prefix-map=$(CURDIR)=. -MMD -MP

UTIL     := $(wildcard plugin/util/*.cc)
CORE     := $(wildcard plugin/core/*.cc)
PROTOCOL := plugin/cni/protocol.cc plugin/cni/result.cc
# What the plugin needs of the datapath: pods, not the node.
POD      := $(addprefix plugin/datapath/,attachment_store.cc bpf_link.cc bpf_object.cc device_program.cc expedite.cc host_veth.cc in_netns.cc link_pins.cc netlink.cc pod_datapath.cc)
NODE     := $(filter-out $(POD),$(wildcard plugin/datapath/*.cc))
CNI      := $(filter-out $(PROTOCOL),$(wildcard plugin/cni/*.cc))
BOOT     := $(wildcard plugin/bootstrap/*.cc)
CTL      := $(wildcard plugin/ctl/*.cc) $(BOOT)
AUDIT    := $(wildcard plugin/audit/*.cc)
AGENT    := $(wildcard plugin/agent/*.cc)

objects = $(patsubst %.cc,$(B)/obj/%.o,$(1))
SKELETON := $(B)/bpf/egressclass.skel.h

PYTHON_FILES := scripts/lab scripts/demo $(wildcard scripts/labkit/*.py test/*/*.py test/*.py)
SHELL_FILES  := scripts/deps scripts/dist scripts/bootstrap.sh $(wildcard scripts/debian/*) .ci/run \
                $(addprefix test/kernel/,boot get_kernel guest_task initrd_init run)
CXX_FILES     = $(shell find plugin test -name '*.cc' -o -name '*.h')
BPF_FILES    := $(wildcard bpf/*.c bpf/*.h)
C_FILES      := $(wildcard test/bench/*.c)

.PHONY: all deps demo test test-unit test-fuzz test-bpf test-lab test-runtime test-thorough test-kernel test-kernel-quick fuzz bench bench-quick bench-cni bench-apply lint fmt install dist clean
all: $(B)/egressclass $(B)/egressctl $(B)/egressd

# One static executable: it is copied onto hosts that have none of our libraries.
$(B)/egressclass: $(call objects,$(UTIL) $(CORE) $(PROTOCOL) $(POD) $(CNI))
	$(call say,LD,$@)
	$(Q)$(CXX) $(CXXFLAGS) -static -Wl,--gc-sections,--no-warnings -o $@ $^ -lbpf -lelf -lz -lnl-route-3 -lnl-3 -pthread

NODE_LIBS := -lbpf -lnl-route-3 -lnl-3 -lnftables -lz -pthread
$(B)/egressctl: $(call objects,$(UTIL) $(CORE) $(POD) $(NODE) $(AUDIT) $(CTL))
	$(call say,LD,$@)
	$(Q)$(CXX) $(CXXFLAGS) -o $@ $^ $(NODE_LIBS)

$(B)/egressd: $(call objects,$(UTIL) $(CORE) $(POD) $(NODE) $(AUDIT) $(AGENT))
	$(call say,LD,$@)
	$(Q)$(CXX) $(CXXFLAGS) -o $@ $^ $(NODE_LIBS)

# nlohmann's assertions are for the tests and the fuzzers: at 2000 classes they are a tenth of an apply.
$(B)/obj/%.o: %.cc
	$(call say,CXX,$<)
	@mkdir -p $(@D)
	$(Q)$(CXX) $(CPPFLAGS) $(CXXFLAGS) -DNDEBUG -ffunction-sections -fdata-sections -c -o $@ $<

$(call objects,$(NODE) $(CTL) $(AGENT)): $(SKELETON)

$(B)/bpf/%.bpf.o: bpf/%.bpf.c
	$(call say,BPF,$<)
	@mkdir -p $(@D)
	$(Q)$(CLANG) $(BPFFLAGS) -c -o $@ $<
	$(Q)llvm-strip --strip-debug $@

$(B)/bpf/%.skel.h: $(B)/bpf/%.bpf.o
	$(call say,SKEL,$@)
	$(Q){ echo '// NOLINTBEGIN'; bpftool gen skeleton $< name $*_bpf; echo '// NOLINTEND'; } > $@

deps:
	@scripts/deps

# --- tests -------------------------------------------------------------------------------------------------------

UNIT_TESTS := $(wildcard test/unit/*.cc)
BPF_TESTS  := $(wildcard test/bpf/*.cc)

# The tests' own copies of the objects carry the sanitizers.
sanitized = $(patsubst %.cc,$(B)/san/%.o,$(1))
SANITIZE := -fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer

$(B)/san/%.o: %.cc
	$(call say,CXX,'$< (sanitized)')
	@mkdir -p $(@D)
	$(Q)$(CXX) $(CPPFLAGS) $(filter-out -O2,$(CXXFLAGS)) -O1 $(SANITIZE) -c -o $@ $<

$(call sanitized,$(BPF_TESTS) $(NODE)): $(SKELETON)

$(B)/test/unit: $(call sanitized,$(UNIT_TESTS) $(UTIL) $(CORE) $(PROTOCOL) $(BOOT) $(AUDIT) plugin/datapath/load_failure.cc)
	$(call say,LD,$@)
	@mkdir -p $(@D)
	$(Q)$(CXX) $(SANITIZE) -o $@ $^ -lbpf -lgtest -lgtest_main -lz -pthread

# What fills the maps, and the nft table of the gateway's namespace.
MAP_FILLERS := $(addprefix plugin/datapath/,gateway_rules.cc in_netns.cc nft_table.cc plan_maps.cc port_sets.cc rulesets.cc)

$(B)/test/bpf: $(call sanitized,$(BPF_TESTS) $(UTIL) $(CORE) $(MAP_FILLERS))
	$(call say,LD,$@)
	@mkdir -p $(@D)
	$(Q)$(CXX) $(SANITIZE) -o $@ $^ -lbpf -lnftables -lgtest -lgtest_main -pthread

# Fuzz targets: libFuzzer is clang's, so here clang compiles the program too. What they find is kept in build/fuzz.
FUZZ_TARGETS := $(patsubst test/fuzz/%_fuzz.cc,%,$(wildcard test/fuzz/*_fuzz.cc))
FUZZ_SECONDS ?= 600
FUZZ_SANITIZE := -fsanitize=address,undefined,float-cast-overflow -fno-sanitize-recover=all -fno-omit-frame-pointer

$(B)/fuzz/obj/%.o: %.cc
	$(call say,CXX,'$< (fuzzed)')
	@mkdir -p $(@D)
	$(Q)$(CLANG)++ $(CPPFLAGS) $(filter-out -O2,$(CXXFLAGS)) -O1 -Wno-unknown-warning-option \
	    $(FUZZ_SANITIZE) -fsanitize=fuzzer-no-link -c -o $@ $<

FUZZERS := $(addprefix $(B)/fuzz/,$(FUZZ_TARGETS))
FUZZED  := $(UTIL) $(CORE) $(PROTOCOL) plugin/cni/pod_class.cc plugin/cni/log.cc
$(FUZZERS): $(B)/fuzz/%: $(B)/fuzz/obj/test/fuzz/%_fuzz.o $(patsubst %.cc,$(B)/fuzz/obj/%.o,$(FUZZED))
	$(call say,LD,$@)
	$(Q)$(CLANG)++ $(FUZZ_SANITIZE) -fsanitize=fuzzer -o $@ $^ -pthread

# $(1): seconds for each target. One input has 5 s and 1 GiB; a log is shown when there is something in it to see.
run_fuzzers = $(Q)printf '%s\n' $(FUZZ_TARGETS) | xargs -P$$(nproc) -I{} sh -c ' \
    mkdir -p $(B)/fuzz/found/{} && \
    $(B)/fuzz/{} -max_total_time=$(1) -timeout=5 -rss_limit_mb=1024 -dict=test/fuzz/json.dict -print_final_stats=1 \
        -artifact_prefix=$(B)/fuzz/{}- $(B)/fuzz/found/{} test/fuzz/corpus/{} >$(B)/fuzz/{}.log 2>&1 || \
    { tail -n 40 $(B)/fuzz/{}.log; exit 1; }'

# In namespaces of their own, with everything that they start: what a test leaves behind by mistake goes with them.
ISOLATED := unshare --mount --net --pid --fork --kill-child --mount-proc --propagation private
PYTEST   := $(ISOLATED) $(PYTHON) -B -m pytest -p no:cacheprovider -q --color=no

test: deps
	@$(MAKE) --no-print-directory -j$$(nproc) all $(B)/test/unit $(B)/test/bpf $(FUZZERS)
	@$(MAKE) --no-print-directory test-unit test-fuzz test-bpf test-lab test-runtime
test-unit: $(B)/test/unit
	$(call say,TEST,unit)
	$(Q)$(B)/test/unit --gtest_brief=1
test-fuzz: $(FUZZERS)
	$(call say,TEST,fuzz)
	$(call run_fuzzers,10)
test-bpf: $(B)/test/bpf
	$(call say,TEST,bpf)
	$(Q)$(ISOLATED) $(B)/test/bpf --gtest_brief=1
BENCH := $(addprefix $(B)/bench/,traffic steer.bpf.o)
# A file at a time on each processor, the longest first, each in namespaces of its own.
LAB_TESTS := $(shell ls -S test/lab/test_*.py)
test-lab: all $(BENCH)
	$(call say,TEST,lab)
	@mkdir -p $(B)/lab
	$(Q)printf '%s\n' $(LAB_TESTS) | xargs -P$$(nproc) -I{} sh -c ' \
	    log=$(B)/lab/$$(basename {} .py).log; \
	    if $(PYTEST) {} >$$log 2>&1; then tail -n 1 $$log | sed "s|^|    {}: |"; else cat $$log; exit 1; fi'
test-runtime: all
	$(call say,TEST,runtime)
	$(Q)$(PYTEST) test/runtime

# As in test-lab, but programs are stopped at each and every of their system calls.
test-thorough: export EC_THOROUGH := 1
test-thorough: all
	$(call say,TEST,'lab thoroughly')
	$(Q)$(PYTEST) test/lab/test_crash.py test/lab/test_races.py

# A distribution's kernel, in which what we need are modules, in a virtual machine: the package, its units, a reboot; then BPF tests and
# those of the lab. The quick one stops before these.
KERNEL ?= debian13
test-kernel test-kernel-quick: deps
	@$(MAKE) --no-print-directory -j$$(nproc) all $(B)/test/bpf
	@$(MAKE) --no-print-directory dist >/dev/null
	$(call say,TEST,'$(KERNEL) in a virtual machine')
	$(Q)test/kernel/run $(KERNEL) $(if $(filter test-kernel,$@),full,quick)

fuzz: $(FUZZERS)
	$(call say,FUZZ,'$(FUZZ_SECONDS) s each: $(FUZZ_TARGETS)')
	$(call run_fuzzers,$(FUZZ_SECONDS))

# Needs an idle machine, each of these. The datapath beside plain masquerade and what others do: test/bench/README.md.
bench: all $(BENCH)
	$(Q)test/bench/datapath
bench-quick: all $(BENCH)
	$(Q)test/bench/datapath --quick

$(B)/bench/traffic: test/bench/traffic.c
	$(call say,CC,$<)
	@mkdir -p $(@D)
	$(Q)gcc -O2 -g -Wall -Wextra -Werror -MMD -MP -o $@ $<

$(B)/bench/%.bpf.o: test/bench/%.bpf.c
	$(call say,BPF,$<)
	@mkdir -p $(@D)
	$(Q)$(CLANG) $(BPFFLAGS) -c -o $@ $<

# Wall time against other plugins.
bench-cni: all
	$(Q)test/bench/cni

# 2000 classes, 20 000 prefixes, 500 pods.
bench-apply: all
	$(Q)test/bench/apply

demo: deps
	@$(MAKE) --no-print-directory -j$$(nproc) all
	@$(ISOLATED) scripts/demo

# --- the rest ----------------------------------------------------------------------------------------------------

lint: $(SKELETON)
	$(call say,LINT,clang-format)
	$(Q)clang-format --dry-run -Werror $(CXX_FILES) $(BPF_FILES) $(C_FILES)
	$(call say,LINT,shellcheck)
	$(Q)shellcheck $(SHELL_FILES)
	$(call say,LINT,clang-tidy)
	$(Q)printf '%s\n' $(filter %.cc,$(CXX_FILES)) | xargs -P$$(nproc) -I{} clang-tidy --quiet {} -- \
	    -std=c++20 -Iplugin -Ibpf -isystem $(B)/bpf -isystem /usr/include/libnl3 2> >(grep -v 'warnings generated' >&2)

fmt:
	$(Q)clang-format -i $(CXX_FILES) $(BPF_FILES) $(C_FILES)

# The plugin waits in libexec until bootstrap puts it where the runtime looks.
install: all
	install -D -m 0755 $(B)/egressclass $(DESTDIR)$(PREFIX)/libexec/egressclass/egressclass
	install -D -m 0755 $(B)/egressctl $(DESTDIR)$(PREFIX)/sbin/egressctl
	install -D -m 0755 $(B)/egressd $(DESTDIR)$(PREFIX)/sbin/egressd
	install -D -m 0755 scripts/bootstrap.sh $(DESTDIR)$(PREFIX)/sbin/egressclass-bootstrap
	install -D -m 0644 conf/config.json $(DESTDIR)$(PREFIX)/share/egressclass/config.json
	install -D -m 0644 -t $(DESTDIR)$(PREFIX)/share/egressclass/examples conf/examples/*.json
	install -D -m 0644 -t $(DESTDIR)$(PREFIX)/share/egressclass/conflists conf/*.conflist
	install -D -m 0644 conf/modules-load.d/egressclass.conf $(DESTDIR)$(PREFIX)/lib/modules-load.d/egressclass.conf
	install -d $(DESTDIR)$(UNITS)
	for unit in conf/*.service; do \
	    sed 's|/usr/local/|$(PREFIX)/|' $$unit | install -m 0644 /dev/stdin $(DESTDIR)$(UNITS)/$${unit#conf/}; done

# Two checkouts of the same commit make the same bytes.
VERSION := $(shell sed -n 's/.*kVersion = "\(.*\)".*/\1/p' plugin/util/version.h)
STAGE   := $(B)/dist/stage
dist: all
	$(Q)rm -rf $(B)/dist
	$(Q)$(MAKE) --no-print-directory install DESTDIR=$(STAGE) PREFIX=/usr UNITS=/lib/systemd/system >/dev/null
	$(Q)strip --strip-all $(STAGE)/usr/libexec/egressclass/egressclass $(STAGE)/usr/sbin/egressctl \
	    $(STAGE)/usr/sbin/egressd
	$(Q)scripts/dist $(STAGE) $(B)/dist $(VERSION)
	$(Q)rm -rf $(STAGE)


clean:
	rm -rf $(B)

-include $(shell find $(B) -name '*.d' 2>/dev/null)
