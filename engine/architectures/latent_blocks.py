"""Multi-head latent attention: keys and values of all heads are made of one latent row a token, and only that is kept (DeepSeek V2, arXiv 2405.04434)."""
from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from .blocks import Attention, Pending, join_stage, linear_stage, matrix_tensors, norm_tensors, open_add_stage, open_norm_stages
from .builder import Builder
from .keys import MAX_HEADS, MAX_WIDTH
from .spec import Matrix, Norm, Records, Rope, Site, Stage, Tensor


@dataclass(frozen=True)
class Latent(Attention):
    """Attention whose KV cache holds one head: of each token a turned part k and a latent c. With W_K and W_V of a head, made of its query [p | t]:

        score = (W_K p . c + t . k) scale          result = W_V (sum of weights times c)

    which is attention over keys W_K' c and values W_V c. So heads read one KV head with keys [k | c] (head_dim) and values c (value_dim). q: the matrix of all
    heads' queries, of the normed rows or, with q_latent, of a latent row of their own, normed by q_latent_norm. k and v are the matrix of [c | k]; latent_norm:
    of c. to_latent, from_latent: W_K and W_V, stacked by head. Others as of Attention.
    """

    q_latent: Matrix | None = None
    q_latent_norm: Norm | None = None
    latent_norm: Norm | None = None
    to_latent: Matrix | None = None
    from_latent: Matrix | None = None

    @property
    def turned(self) -> int:
        """Dimensions of a head that have positions."""
        return self.head_dim - self.value_dim

    @property
    def stacks(self) -> tuple[Matrix, Matrix]:
        assert self.to_latent and self.from_latent
        return self.to_latent, self.from_latent

    def norms(self) -> tuple[Norm, ...]:
        return tuple(n for n in (self.norm, self.q_latent_norm, self.latent_norm, self.post_norm) if n)

    def matrices(self) -> tuple[Matrix, ...]:
        return tuple(m for m in (self.q_latent, self.q, self.k, *self.stacks, self.output) if m)

    def tensors(self) -> Iterator[Tensor]:
        yield from norm_tensors(self.norm)
        yield from matrix_tensors(*self.matrices())
        for norm in (self.q_latent_norm, self.latent_norm, self.post_norm):
            yield from norm_tensors(norm)

    def more_buffers(self) -> dict[str, int]:
        found = {"kv_latent": self.head_dim, "q_heads": self.q.rows, "att_heads": self.output.columns}
        return {**found, "q_latent": self.q_latent.rows} if self.q_latent else found

    def _heads_site(self) -> tuple[Site, ...]:
        return (Site(f"blocks.{self.layer}.attn.hook_q_heads", "q_heads", self.q.rows),)

    def _readers(self) -> tuple[Matrix, ...]:
        assert self.k
        return self.q_latent or self.q, self.k

    def _project(self, *after: Site) -> Stage:
        assert self.k
        first = (self.q_latent, "q_latent", 0, self.q_latent.rows) if self.q_latent else (self.q, "q_heads", 0, self.q.rows)
        return Stage("project", "latents", self.layer, {"matrices": (first, (self.k, "kv_latent", 0, self.head_dim))}, (), (), after)

    def _queries(self, records: Records, *after: Site) -> Iterator[Stage]:
        """Up to all heads' queries; with sites after them: in open form."""
        to = self.stacks[0]
        at = f"blocks.{self.layer}.attn."
        sites = (Site(at + "hook_q_latent", "q_latent", self.q.columns),) if self.q_latent and after else ()
        yield Stage("latents", "keys and values", self.layer, {"attention": self, "records": records(self.q) and not after}, ("latents", "queries' latents"),
                    (), sites)
        if self.q_latent:
            if after and records(self.q):
                yield Stage("quantize", "quantize", self.layer, {"rows": "q_latent", "columns": self.q.columns, "records": "records"}, ("queries' latents",))
            yield linear_stage("queries", self.layer, self.q, "q_latent", "records", "q_heads", *(self._heads_site() if after else ()))
        size = self.heads * self.head_dim
        args = {"matrix": to, "rows": "q_heads", "out": "q", "columns": (self.q.rows, size), "strides": (self.q.rows // self.heads, self.head_dim),
                "first": self.turned, "keep": self.turned}
        yield Stage("by_head", "queries by head", self.layer, args, ("queries",), (), after)

    def _results(self, records: Records, *after: Site) -> Iterator[Stage]:
        from_, whole = self.stacks[1], self.output.columns
        args = {"matrix": from_, "rows": "att", "out": "att_heads", "columns": (self.heads * self.value_dim, whole),
                "strides": (self.value_dim, whole // self.heads), "first": 0, "keep": 0}
        yield Stage("by_head", "values by head", self.layer, args, ("attention output",), (), after)
        if records(self.output):
            yield Stage("quantize", "quantize", self.layer, {"rows": "att_heads", "columns": whole, "records": "records"}, ("attention output",))

    def _attend(self, turned: bool, *after: Site) -> Stage:
        return Stage("attend", "attention", self.layer, {"attention": self, "records": False, "turned": turned}, ("queries", "attention output"), (), after)

    @property
    def keeps(self) -> bool:
        return False

    def fused(self, pending: Pending, records: Records) -> tuple[list[Stage], Pending]:
        i = self.layer
        return [
            join_stage("attention norm", i, self.norm, pending, self._readers(), records, self.dim), self._project(), *self._queries(records),
            *self._append(False), self._attend(False), *self._results(records),
            linear_stage("attention output", i, self.output, "att_heads", "records", "addend"),
        ], (self.leaves,)

    def open(self, records: Records, pending: Pending = ()) -> Iterator[Stage]:
        i, at = self.layer, f"blocks.{self.layer}."
        yield from open_norm_stages("attention norm", i, self.norm, self._readers(), records, self.dim, Site(at + "hook_resid_pre", "x", self.dim),
                                    Site(at + "ln1.hook_normalized", "normed", self.dim))
        yield self._project(Site(at + "attn.hook_kv_latent", "kv_latent", self.head_dim), *(() if self.q_latent else self._heads_site()))
        yield from self._queries(records, Site(at + "attn.hook_q", "q", self.heads * self.head_dim))
        turned = (Site(at + "attn.hook_rot_q", "q", self.heads * self.head_dim), Site(at + "attn.hook_rot_k", "k", self.head_dim))
        yield Stage("rotate", "positions", i, {"attention": self, "turned": True}, ("queries and keys",), (), turned)
        yield from self._append(True)
        yield self._attend(True, Site(at + "attn.hook_result", "att", self.heads * self.value_dim))
        yield from self._results(records, Site(at + "attn.hook_z", "att_heads", self.output.columns))
        yield linear_stage("attention output", i, self.output, "att_heads", "records", "addend", Site(at + "hook_attn_out", "addend", self.dim))
        yield open_add_stage("attention output", i, (self.leaves,), self.dim, Site(at + "hook_resid_mid", "x", self.dim))


def latent_attention(k: Builder, i: int, norm: Norm, rope: Rope, scale: float) -> Latent:
    """A block under the usual names. scale: what scores are multiplied by beside 1 / sqrt(a head's query)."""
    heads, latent, turned = k.per_layer("attention.head_count", MAX_HEADS)[i], k.integer("attention.kv_lora_rank", MAX_WIDTH), rope.dims
    if k.per_layer("attention.head_count_kv", MAX_HEADS)[i] != 1 or k.has(f"blk.{i}.attn_kv_b.weight"):
        k.refuse("keeps keys and values of all heads (attn_kv_b), as files of 2024 did: convert the model again for latent attention with one KV head")
    size, value = k.integer("attention.key_length_mla", MAX_WIDTH), k.integer("attention.value_length_mla", MAX_WIDTH)
    for key, expected in ("attention.key_length", latent + turned), ("attention.value_length", latent):
        if (found := k.integer(key, MAX_WIDTH, expected)) != expected:
            k.fail(f"key '{k.name(key)}' is {found}, but the latents and the turned dimensions make it {expected}")
    if size <= turned or latent % 16 or value % 16:
        k.refuse(f"has heads of {size} and {value} dimensions over latents of {latent}, {turned} of them turned: llamina needs more than the turned ones, and "
                 "multiples of 16")
    plain, site, prefix = size - turned, "ln1.hook_normalized", "self_attn."
    rank = k.integer("attention.q_lora_rank", MAX_WIDTH, 0, least=0)
    q_latent = k.matrix(i, "attn_q_a", rank, k.dim, site, prefix + "q_a_proj") if rank else None
    q_norm = k.norm(i, "attn_q_a_norm", prefix + "q_a_layernorm", dim=rank) if rank else None
    name, columns, read = ("q_b", rank, "attn.hook_q_latent") if rank else ("q", k.dim, site)
    q = k.matrix(i, f"attn_{name}", heads * size, columns, read, f"{prefix}{name}_proj")
    kv = k.matrix(i, "attn_kv_a_mqa", latent + turned, k.dim, site, prefix + "kv_a_proj_with_mqa")
    to = Matrix(f"blk.{i}.attn_k_b.weight", latent, plain, f"blocks.{i}.attn.hook_q_heads", experts=heads, used=heads)
    from_ = Matrix(f"blk.{i}.attn_v_b.weight", value, latent, f"blocks.{i}.attn.hook_result", experts=heads, used=heads)
    return Latent(i, k.dim, heads, 1, latent + turned, latent, scale * size**-0.5, norm, q, kv, kv,
                  k.matrix(i, "attn_output", k.dim, heads * value, "attn.hook_z", prefix + "o_proj"), rope, i, q_latent=q_latent, q_latent_norm=q_norm,
                  latent_norm=k.norm(i, "attn_kv_a_norm", prefix + "kv_a_layernorm", dim=latent), to_latent=to, from_latent=from_)
