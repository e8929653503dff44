"""The sentences of the report, English and Chinese; merged into the texts of text.py."""

from __future__ import annotations

PROSE: dict[str, tuple[str, str]] = {
    # the page a manager reads
    "report_title": (
        "Qwen3-VL cost review: {model} on {device}",
        "Qwen3-VL 成本评审：{model}（{device}）",
    ),
    "headline": (
        "{today} per 100 images today, {best} with {setting}: {percent} less ({low} to {high}).",
        "当前每 100 张图 {today}；改用 {setting} 后为 {best}，节省 {percent}（{low} 至 {high}）。",
    ),
    "headline_one_repeat": (
        "{today} per 100 images today, {best} with {setting}: {percent} less, from a single "
        "repeat, so without an interval.",
        "当前每 100 张图 {today}；改用 {setting} 后为 {best}，节省 {percent}"
        "（只测了一次，没有区间）。",
    ),
    "headline_noise": (
        "{today} per 100 images today; the cheapest measured alternative, {setting}, costs {best}: "
        "the difference ({low} to {high}) is within noise.",
        "当前每 100 张图 {today}；最便宜的替代配置 {setting} 为 {best}，"
        "差异（{low} 至 {high}）在噪声范围内。",
    ),
    "headline_dearer": (
        "{today} per 100 images today; the cheapest setting that keeps the limits, {setting}, "
        "costs {best}: {percent} more ({low} to {high}).",
        "当前每 100 张图 {today}；满足限制条件的最便宜配置 {setting} 为 {best}，"
        "贵 {percent}（{low} 至 {high}）。",
    ),
    "headline_same": (
        "{today} per 100 images today, and no measured setting is cheaper.",
        "当前每 100 张图 {today}；没有测到更便宜的配置。",
    ),
    "headline_same_limits": (
        "{today} per 100 images today, and no measured setting that keeps the limits is cheaper.",
        "当前每 100 张图 {today}；在满足限制条件的配置中，没有测到更便宜的。",
    ),
    "headline_same_held": (
        "{today} per 100 images today; at this resolution no measured setting is cheaper. Others "
        "are, but what they would lose is not known.",
        "当前每 100 张图 {today}；在此分辨率下没有测到更便宜的配置。"
        "其他分辨率更便宜，但会损失多少质量尚不清楚。",
    ),
    "headline_unreached": (
        "No measured setting reaches a quality of {wanted}; the best has {best}.",
        "没有实测配置达到质量 {wanted}，最高为 {best}。",
    ),
    "headline_nothing": (
        "No setting was measured to the end, so there is no cost to report. What was tried, and "
        "why it stopped, is listed below.",
        "没有任何配置完成测量，因此无法给出成本。已尝试的配置及其停止原因见下文。",
    ),
    "row_today": ("Today", "当前"),
    "row_recommended": ("Recommended", "推荐"),
    "row_today_recommended": ("Today and recommended", "当前即推荐"),
    "row_cheaper": ("Cheapest of all", "最便宜（不论质量）"),
    "column_setting": ("setting", "配置"),
    "column_cost": ("cost per 100 images", "每 100 张图成本"),
    "column_interval": ("95% interval", "95% 区间"),
    "column_speed": ("images per second", "张/秒"),
    "column_ttft": ("time to first token", "首 token 延迟"),
    "column_memory": ("peak memory", "显存/内存峰值"),
    "column_change": ("against today", "相对当前"),
    "today_chosen": (
        "Today's setting was not named: of the smallest batch that was measured, the one with the "
        "most pixels and then the most exact precision is taken (to name yours: "
        "--current batch_size=1).",
        "未指定当前配置：取实测配置中批量最小者，其中先取像素最多、再取精度最高的一个"
        "（可用 --current batch_size=1 指定）。",
    ),
    "today_named": (
        "Today's setting is the one that was named.",
        "当前配置由用户指定。",
    ),
    "monthly_same": (
        "At {images} images a month that is {today}.",
        "按每月 {images} 张图计，共 {today}。",
    ),
    "monthly": (
        "At {images} images a month that is {today} today and {best} with the recommended setting.",
        "按每月 {images} 张图计，当前 {today}，采用推荐配置后 {best}。",
    ),
    "cheaper": (
        "At {resolution} it would be {cost} ({percent} against today). Fewer pixels can cost "
        "answers, and quality was not measured here, so the recommendation keeps today's "
        "resolution.",
        "若改为 {resolution}，成本为 {cost}（相对当前 {percent}）。像素减少可能影响答案质量，"
        "而本次没有测量质量，因此推荐保持当前的分辨率。",
    ),
    "cheaper_worse": (
        "The cheapest setting of all, {setting}, would cost {cost} ({percent} against today), but "
        "its quality is {quality}.",
        "所有配置中最便宜的是 {setting}，成本 {cost}（相对当前 {percent}），但质量只有 {quality}。",
    ),
    "quality_kind_answers": (
        "mean score over the tasks, {n} answers compared with the true ones",
        "各任务得分的平均，{n} 个答案与标准答案比较",
    ),
    "quality_kind_agreement": (
        "agreement of {n} answers with those of the most exact setting; true answers are not known",
        "{n} 个答案与最精确配置的一致程度；没有标准答案",
    ),
    "quality_same": (
        "Quality: {today} ({kind}).",
        "质量：{today}（{kind}）。",
    ),
    "quality_noise": (
        "Quality: {best} against {today} today: the difference of {difference} points ({low} to "
        "{high}) is within noise (p = {p}; {kind}).",
        "质量：{best}，当前 {today}：相差 {difference} 个百分点（{low} 至 {high}），"
        "在噪声范围内（p = {p}；{kind}）。",
    ),
    "quality_differs": (
        "Quality: {best} against {today} today: {difference} points ({low} to {high}; p = {p}; "
        "{kind}).",
        "质量：{best}，当前 {today}：{difference} 个百分点（{low} 至 {high}；p = {p}；{kind}）。",
    ),
    "quality_lost_tasks": (
        "What it gives up: {tasks}.",
        "损失所在：{tasks}。",
    ),
    "quality_left_out": (
        "Left out of the scores: {missing} items without an answer. Scored as wrong: {unparsed} "
        "answers from which no box could be read.",
        "未计分：{missing} 个没有得到答案的请求；计为错误：{unparsed} 个无法解析出坐标框的答案。",
    ),
    "quality_random": (
        "Quality: not measured. The weights are random, so speed, memory and cost are real, the "
        "answers are not.",
        "质量：未测量。权重为随机初始化，速度、显存和成本真实有效，答案没有意义。",
    ),
    "quality_none": (
        "Quality: not measured. Before changing precision or resolution, compare answers on your "
        "own images.",
        "质量：未测量。更改精度或分辨率之前，请先用自己的图片比较答案。",
    ),
    "sure": (
        "How sure: medians of {repeats} timed passes after a warm-up, each over {today_items} "
        "items with today's setting and {items} with the recommended one; the range of the saving "
        "combines the worst ends of both 95% intervals.",
        "可信度：预热后计时 {repeats} 遍取中位数，当前配置每遍 {today_items} 个请求、"
        "推荐配置每遍 {items} 个；"
        "节省范围由两个 95% 区间的最坏端点组合而成。",
    ),
    "sure_once": (
        "How sure: one timed pass after a warm-up, over {today_items} items with today's setting "
        "and {items} with the recommended one, so without intervals.",
        "可信度：预热后只计时一遍，当前配置 {today_items} 个请求、推荐配置 {items} 个，"
        "因此没有区间。",
    ),
    "sure_uneven": (
        "How sure: timed passes after a warm-up, {today_repeats} over {today_items} items with "
        "today's setting, {repeats} over {items} with the recommended one; several give a median "
        "and an interval, one gives neither.",
        "可信度：预热后计时，当前配置 {today_repeats} 遍、每遍 {today_items} 个请求，"
        "推荐配置 {repeats} 遍、每遍 {items} 个；多遍取中位数并给出区间，只有一遍则没有。",
    ),
    "sure_same": (
        "How sure: medians of {repeats} timed passes after a warm-up, each over {items} items.",
        "可信度：预热后计时 {repeats} 遍取中位数，每遍 {items} 个请求。",
    ),
    "sure_same_once": (
        "How sure: one timed pass after a warm-up, over {items} items, so without an interval.",
        "可信度：预热后只计时一遍，共 {items} 个请求，因此没有区间。",
    ),
    "run_it": ("To run the recommended setting:", "运行推荐配置："),
    "price_mismatch": (
        "The seconds were measured on {device}, the price is that of {gpu}: read the money as "
        "arithmetic on an example, not as what {gpu} would cost.",
        "耗时在 {device} 上测得，价格却取自 {gpu}：金额只是算例，不代表 {gpu} 的实际成本。",
    ),
    "figures_in_english": (
        "No Chinese font was found on this machine, so the figures carry English labels "
        "(Debian and Ubuntu: apt install fonts-noto-cjk).",
        "本机没有找到中文字体，图中文字改用英文（Debian、Ubuntu：apt install fonts-noto-cjk）。",
    ),
    # evidence
    "waterfall_heading": ("From today to the recommended setting", "从当前到推荐配置"),
    "waterfall_none": (
        "Today's setting is the recommended one, so there are no steps to show.",
        "当前配置就是推荐配置，没有步骤可展示。",
    ),
    "waterfall_note": (
        "Each step is a measured setting; levers are pulled in the order batch, cache, engine, "
        "prefix cache, attention, precision, others. Another order would split the same total "
        "differently.",
        "每一步都是实测配置；调整顺序为批大小、缓存、引擎、前缀缓存、注意力实现、精度、其他。"
        "换一种顺序，各步占比会不同，总差不变。",
    ),
    "tradeoff_heading": ("Cost against memory", "成本与显存"),
    "tradeoff_note": (
        "Every point is a measured setting; where a line is drawn, those on it are beaten by no "
        "other in both.",
        "每个点都是实测配置；若画有折线，线上的配置没有其他配置能在两方面同时更优。",
    ),
    "column_quality": ("quality", "质量"),
    "quality_heading": ("What the answers are worth", "答案质量"),
    "quality_note": (
        "Scores are 0 to 1: exact match for colours, counts, codes and totals, boxes that overlap "
        "by half for locations, the similarity or overlap of texts for other tasks; a setting's "
        "quality is the mean over its tasks. Intervals are over the items, differences compare the "
        "same items.",
        "得分为 0 到 1：颜色、计数、编号与金额要求完全一致，定位以重叠过半的框计，"
        "其他任务按文本相似或重合程度；"
        "一个配置的质量是各任务得分的平均。区间针对题目的抽样，差异按相同题目逐一比较。",
    ),
    "resolutions_heading": ("A resolution for each task", "按任务选择分辨率"),
    "resolutions_note": (
        "Proposed is the lowest measured resolution at which a task stays within {tolerance} "
        "points of the highest one, beside the article's table (detection 512, description 256, "
        "fine analysis native).",
        "建议值为该任务得分与最高分辨率相差不超过 {tolerance} 个百分点的最低实测分辨率，"
        "旁边是原文的表（检测 512，描述 256，精细分析用原始尺寸）。",
    ),
    "resolutions_measured": (
        "Both tables, measured as settings of their own:",
        "两张表各自作为一种配置的实测结果：",
    ),
    "column_task": ("task", "任务"),
    "column_proposed": ("proposed", "建议"),
    "column_quality_there": ("quality there", "该处质量"),
    "column_article": ("article", "原文"),
    "column_quality_article": ("quality with the article's", "按原文的质量"),
    "column_quality_best": ("quality at the highest", "最高分辨率的质量"),
    "limits": (
        "Limits ruled out: {limits}.",
        "因限制条件排除：{limits}。",
    ),
    "limit_min_quality": (
        "{n} settings under the limit on quality of {limit}",
        "{n} 个配置低于质量下限 {limit}",
    ),
    "limit_max_vram_gib": (
        "{n} settings over the memory limit",
        "{n} 个配置超出显存上限",
    ),
    "limit_max_ttft_s": (
        "{n} settings over the limit on time to first token",
        "{n} 个配置超出首 token 延迟上限",
    ),
    "curves_heading": (
        "Throughput, memory and cost over batch size",
        "吞吐量、显存与成本随批大小的变化",
    ),
    "resolution_curves_heading": (
        "Throughput, memory and cost over resolution",
        "吞吐量、显存与成本随分辨率的变化",
    ),
    "curves_none": (
        "One batch size and one resolution were measured: there is no curve to draw.",
        "只测了一种批大小和一种分辨率，无曲线可画。",
    ),
    "feasible_heading": ("What fits, and what it costs", "哪些配置可行，成本如何"),
    "fitting_note": (
        "Predicted from the model's sizes: the largest batch of these images that fits a card, "
        "with room for CUDA's context and what the allocator cannot use, as measured on one H200. "
        "The article says 4-8 and 8-16.",
        "由模型尺寸预测：各显存容量下这些图像可用的最大批大小，"
        "已为 CUDA 上下文和分配器碎片留出余量（按一块 H200 上的实测）。"
        "原文的说法是 4–8 和 8–16。",
    ),
    "stages_heading": ("Where the time goes", "时间花在哪里"),
    "stages_note": (
        "Encoded bytes in, text out. GPU stages are timed with events on the device; nothing "
        "waits for them.",
        "从编码图像字节到输出文本。GPU 阶段用设备事件计时，不引入额外等待。",
    ),
    "limits_heading": ("Distance to the limit, and what to do first", "离极限多远，先做什么"),
    "limits_note": (
        "The least time of a stage is its FLOPs at the device's matrix rate or its bytes at its "
        "bandwidth, whichever is longer. What findings are worth overlaps: it does not add up.",
        "某阶段的最短时间：按设备矩阵算力完成其运算量，或按带宽搬运其数据量，取较长者。"
        "各条建议的收益会重叠，不能相加。",
    ),
    "ceilings": (
        "The device does at most {tflops} TFLOP/s in {precision} and {tb} TB/s: {source}.",
        "设备上限：{precision} 算力 {tflops} TFLOP/s，带宽 {tb} TB/s（{source}）。",
    ),
    "ceilings_unknown": (
        "What this device can do at most in {precision} is not known ({source}): measure it there "
        "with qvl-lab doctor --ceilings FILE.",
        "尚不清楚该设备在 {precision} 下的上限（{source}）："
        "请在该机器上运行 qvl-lab doctor --ceilings FILE 测量。",
    ),
    "ceilings_measured": ("measured on {device}, {file}", "在 {device} 上实测，见 {file}"),
    "ceilings_table": ("from the table of GPUs, {source}", "取自 GPU 表，{source}"),
    "ceilings_no_gpu": (
        "the device is not in the table of GPUs, and nothing was measured",
        "该设备不在 GPU 表中，也没有实测",
    ),
    "limits_seconds": (
        "Seconds are of one pass over {n} images.",
        "秒数为处理 {n} 张图的一轮。",
    ),
    "limits_of": ("**{name}**: {setting}", "**{name}**：{setting}"),
    "limits_older": (
        "Not known: an older version wrote this run, which does not say how large the model was "
        "and how much there was to compute; measure it again.",
        "无法计算：此结果由旧版本写入，没有记录模型尺寸和计算量，请重新测量。",
    ),
    "limits_none": ("Not known: {reason}.", "无法计算：{reason}。"),
    "column_stage": ("stage", "阶段"),
    "column_seconds": ("seconds", "秒"),
    "column_share": ("share", "占比"),
    "column_least": ("least time", "最短时间"),
    "column_times": ("times the least", "倍数"),
    "column_bound": ("limit set by", "极限取决于"),
    "column_reached": ("reached", "达到"),
    "column_if": ("images/s if at the limit, or hidden", "达到极限（或被掩盖）时的张/秒"),
    "bound_compute": ("compute", "算力"),
    "bound_memory": ("bandwidth", "带宽"),
    "findings_none": (
        "Nothing measured here points to a change that is worth saying.",
        "从本次测量中看不出值得一提的改动。",
    ),
    "finding_most_percent": ("up to {percent} more images per second", "吞吐最多提高 {percent}"),
    "finding_most_times": ("up to {times}x the images per second", "吞吐最多可达 {times} 倍"),
    "finding_measured_percent": (
        "measured: {percent} more images per second",
        "实测吞吐提高 {percent}",
    ),
    "finding_measured_times": (
        "measured: {times}x the images per second",
        "实测吞吐为 {times} 倍",
    ),
    "finding_preparing": (
        "The GPU waits for {share} of the time while the CPU prepares images and text, longest "
        "for {stage} ({stage_share}). Prepare the next batch while the GPU computes this one.",
        "GPU 有 {share} 的时间在等待 CPU 准备图像和文本，其中主要是{stage}（{stage_share}）。"
        "应在 GPU 计算当前批次时准备下一批。",
    ),
    "finding_preparing_beside": (
        "The GPU waits for {share} of the time although images are prepared beside it, longest for "
        "{stage} ({stage_share}): the CPU cannot keep up. Smaller files or more CPU cores help.",
        "虽然图像已并行准备，GPU 仍有 {share} 的时间在等待，其中主要是{stage}（{stage_share}）："
        "CPU 跟不上。可使用更小的文件或更多的 CPU 核。",
    ),
    "finding_waiting_decode": (
        "Decoding waits for kernel launches: {step_ms} ms a step against {least_ms} possible, and "
        "a batch of {more} takes as long a step as this one of {rows}. Use CUDA graphs "
        "({option}) or a larger batch.",
        "生成阶段受限于 kernel 启动：每步 {step_ms} 毫秒，理论最短 {least_ms} 毫秒；"
        "批大小 {more} 与 {rows} 的每步耗时相同。"
        "可使用 CUDA graph（{option}）或更大的批。",
    ),
    "finding_far_decode": (
        "Decoding takes {step_ms} ms a step against {least_ms} possible, for a batch of {rows}. "
        "Profile it, or measure a larger batch, to see what holds it.",
        "生成阶段每步 {step_ms} 毫秒，理论最短 {least_ms} 毫秒（批大小 {rows}）。"
        "可做一次剖析或测更大的批，以查明原因。",
    ),
    "finding_reading_weights": (
        "Decoding reaches {bandwidth_share} of the bandwidth: every step reads weights and cache "
        "for {rows} answers. A larger batch shares the reading of the weights.",
        "生成阶段已用到带宽的 {bandwidth_share}：每步为 {rows} 个答案读取权重和缓存。"
        "更大的批可以分摊权重的读取。",
    ),
    "finding_far_vision": (
        "The vision encoder takes {times_slower}x its least time. Packed attention and compiled "
        "blocks come nearer.",
        "视觉编码耗时为其最短时间的 {times_slower} 倍。打包注意力和编译可以更接近极限。",
    ),
    "finding_far_vision_packed": (
        "The vision encoder takes {times_slower}x its least time, with images packed into one pass "
        "already. Profile it to see what holds it.",
        "视觉编码耗时为其最短时间的 {times_slower} 倍，而图像已打包处理。可做一次剖析以查明原因。",
    ),
    "finding_far_prefill_packed": (
        "The prefill takes {times_slower}x its least time, with prompts packed into one pass "
        "already. A larger prefill_chunk may come nearer.",
        "预填充耗时为其最短时间的 {times_slower} 倍，而提示词已打包处理。"
        "更大的 prefill_chunk 可能更接近极限。",
    ),
    "finding_far_prefill": (
        "The prefill takes {times_slower}x its least time. Larger batches and compiled layers "
        "come nearer.",
        "预填充耗时为其最短时间的 {times_slower} 倍。更大的批和编译可以更接近极限。",
    ),
    "finding_slow_patch_embedding": (
        "The patch embedding takes {share} of the vision encoder: a 3D convolution where a matrix "
        "product does the same.",
        "图块嵌入占视觉编码的 {share}：这里用了三维卷积，而矩阵乘法即可完成。",
    ),
    "finding_at_limit": (
        "{stage}, {share} of the time, computes at {mfu} of the device's rate: only fewer pixels, "
        "fewer tokens or a lower precision make it much faster.",
        "{stage}占 {share} 的时间，已达到算力的 {mfu}："
        "只有减少像素、token 或降低精度才能明显加快。",
    ),
    "finding_padding": (
        "{padded} of the prompt tokens are padding: prompts of one batch differ in length.",
        "提示词中有 {padded} 是填充：同一批中的提示词长度不同。",
    ),
    "finding_fp32": (
        "{precision} was measured with the same settings, and is faster than fp32.",
        "同样配置下已实测 {precision}，比 fp32 快。",
    ),
    "finding_fast_engine": (
        "The fast engine was measured with the same settings, and is faster.",
        "同样配置下已实测快速引擎，速度更快。",
    ),
    "finding_larger_batch": (
        "Batch {more} was measured with the same settings, and is faster than batch {rows}.",
        "同样配置下已实测批大小 {more}，比 {rows} 快。",
    ),
    "finding_idle": (
        "The driver saw a kernel running for {busy} of the time; the article aims to keep it at "
        "70-90%.",
        "驱动统计的 GPU 利用率为 {busy}；原文的目标是保持在 70–90%。",
    ),
    "finding_throttled": (
        "The clocks were slowed for {share} of the time: {reason}.",
        "有 {share} 的时间时钟被降低：{reason}。",
    ),
    "finding_pausing": (
        "Between stages the GPU had nothing to do for {share} of the time, longest during "
        "{stage} on the CPU.",
        "各阶段之间 GPU 有 {share} 的时间空闲，主要发生在 CPU 进行{stage}时。",
    ),
    "finding_launching": (
        "Under the profiler the GPU is idle for {share} of {stage}, between {kernels} kernels of "
        "{mean_us} us on average: it waits for their launches. CUDA graphs, fused kernels or a "
        "larger batch help.",
        "在剖析器下，{stage}期间 GPU 有 {share} 的时间空闲：共 {kernels} 个 kernel，"
        "平均 {mean_us} 微秒，受限于启动。可使用 CUDA graph、融合 kernel 或更大的批。",
    ),
    # the ablation
    "ablation_heading": (
        "What each lever of the fast engine is worth",
        "快速引擎各优化项分别值多少",
    ),
    "ablation_note": (
        "Measured one lever at a time: alone, with all others off, and missing, with all others "
        "on. Where a lever gains more alone than is lost without it, others do part of its work; "
        "where it is the other way round, it needs the others. The factors cannot simply be "
        "multiplied.",
        "每次只动一项：单独开启（其余全关），以及单独关闭（其余全开）。"
        "若某项单开的收益大于单关的损失，说明其他优化项能替代它的一部分；"
        "反之说明它要靠其他优化项才能发挥。各倍数不能直接相乘。",
    ),
    "ablation_summary": (
        "100 images cost {nothing} with none of these levers and {all} with all of them: {factor} "
        "times as fast ({low} to {high}).",
        "优化项全部关闭时每 100 张图 {nothing}，全部开启时 {all}：速度为 {factor} 倍"
        "（{low} 至 {high}）。",
    ),
    "ablation_summary_once": (
        "100 images cost {nothing} with none of these levers and {all} with all of them: {factor} "
        "times as fast, from a single repeat, so without an interval.",
        "优化项全部关闭时每 100 张图 {nothing}，全部开启时 {all}：速度为 {factor} 倍"
        "（只测了一次，没有区间）。",
    ),
    "ablation_meaning": ("{lever}: {meaning}", "{lever}：{meaning}"),
    "lever_batch_size": (
        "so many requests run at once; off, one after the other.",
        "同时处理这么多请求；关闭时逐个处理。",
    ),
    "lever_prefix_cache": (
        "another question about an image does not read the image again.",
        "对同一张图再次提问时，不必重新读图。",
    ),
    "lever_packing": (
        "several images and prompts go through the model in one pass, without padding.",
        "多张图和多条提示词不加填充，一起通过模型。",
    ),
    "lever_overlap": (
        "the CPU decodes images and prepares the next step while the GPU computes.",
        "GPU 计算时，CPU 同时解码图片、准备下一步。",
    ),
    "lever_cuda_graphs": (
        "a decoding step is launched as a whole instead of kernel by kernel; on a GPU only.",
        "生成的每一步整体启动，而不是逐个启动 kernel；仅在 GPU 上有效。",
    ),
    "lever_fused_kernels": (
        "what lies between the large products (normalisation, rotation, activation, sums) is "
        "compiled into few kernels; on a GPU only.",
        "大矩阵乘法之间的运算（归一化、旋转、激活、求和）编译成少量 kernel；仅在 GPU 上有效。",
    ),
    "column_lever": ("lever", "优化项"),
    "column_alone_speed": ("alone: images per second", "单开：张/秒"),
    "column_alone_cost": ("alone: cost per 100 images", "单开：每 100 张图成本"),
    "column_gained": ("times as fast as with none", "速度为全关时的倍数"),
    "column_all_but_speed": ("without it: images per second", "单关：张/秒"),
    "column_all_but_cost": ("without it: cost per 100 images", "单关：每 100 张图成本"),
    "column_lost": ("times the time of all", "耗时为全开时的倍数"),
    "run_ablation": ("To measure this again:", "重新测量："),
    # caches over hit rate
    "hits_heading": ("What caches save, by hit rate", "各缓存在不同命中率下能省多少"),
    "hits_note": (
        "Requests repeated earlier ones at chosen rates. Every timed pass began with empty caches, "
        "and the hit rates are those measured: the share of requests whose image was not seen "
        "anew. Cost is taken to fall along a line. Holding {n} images takes a share of the card's "
        "memory and is charged that share of the card's hour, whole answers too, although they "
        "lie in host memory; a cache pays from the hit rate at which it costs, with that, what no "
        "cache costs. The article says that caching saves {claim}, and names no hit rate.",
        "请求按设定比例重复先前的请求。每遍计时都从空缓存开始，命中率为实测值，"
        "即无需重新编码图像的请求占比。成本按随命中率线性下降处理。"
        "保存 {n} 张图会占用一部分显存，按占比分摊该卡的每小时费用"
        "（完整答案存放在主机内存中，也按此计）；计入后与无缓存成本相等的命中率即为回本点。"
        "原文称缓存可省 {claim}，但没有给出命中率。",
    ),
    "column_cache": ("cache", "缓存"),
    "column_hits_saving": ("saves, at the highest hit rate measured", "最高实测命中率下的节省"),
    "column_hits_memory": ("its memory, and share of the card", "占用内存及占显存的比例"),
    "column_hits_pays": ("pays from a hit rate of", "回本命中率"),
    "column_hits_claim": ("saves what the article says from", "达到原文所说节省的命中率"),
    "hits_saving": ("{saving} at {rate}", "命中率 {rate} 时 {saving}"),
    "hits_never": ("never", "无法回本"),
    "hits_not_reached": ("not reached up to {rate}", "至 {rate} 仍未达到"),
    "article_heading": ("Beside the article", "与原文对照"),
    "article_note": (
        "The article behind this project reports ¥50 (62 minutes, one by one) against ¥8 (10 "
        "minutes) for 100 images on an A10G at ¥0.8 a minute, 84% less, and gives no measurement. "
        "Measured here, other model sizes and machines apart: {today} s per 100 images today, "
        "{best} s with the recommended setting ({percent}). At the article's ¥0.8 a minute these "
        "seconds would be {today_cost} and {best_cost}.",
        "本项目所依据的文章称：A10G（每分钟 0.8 元）处理 100 张图，逐张处理要 50 元"
        "（62 分钟），优化后 8 元（10 分钟），省 84%，但没有给出测量。"
        "本次实测（模型规模与机器不同）："
        "当前每 100 张图 {today} 秒，推荐配置 {best} 秒（{percent}）。"
        "按文章的每分钟 0.8 元折算，分别为 {today_cost} 和 {best_cost}。",
    ),
    "article_note_same": (
        "The article behind this project reports ¥50 (62 minutes, one by one) against ¥8 (10 "
        "minutes) for 100 images on an A10G at ¥0.8 a minute, 84% less, and gives no measurement. "
        "Measured here, other model sizes and machines apart: {today} s per 100 images with "
        "today's setting, which is the recommended one. At the article's ¥0.8 a minute these "
        "seconds would be {today_cost}.",
        "本项目所依据的文章称：A10G（每分钟 0.8 元）处理 100 张图，逐张处理要 50 元"
        "（62 分钟），优化后 8 元（10 分钟），省 84%，但没有给出测量。"
        "本次实测（模型规模与机器不同）：当前配置即推荐配置，每 100 张图 {today} 秒，"
        "按文章的每分钟 0.8 元折算为 {today_cost}。",
    ),
    "article_split_note": (
        "The article also says where the time goes. Measured are shares of all the time from "
        "encoded image to text. What it calls fusion is taken to be the mergers, which turn four "
        "patches into one token; it leaves out prefill, and what happens before and after.",
        "文章还给出了时间占比。实测占比以从编码图像到输出文本的全部时间为准。"
        "文章所说的“融合”在此理解为把四个图块合并成一个 token 的融合层（merger）；"
        "文章没有提到预填充以及前后处理。",
    ),
    "column_vision": ("vision encoder", "视觉编码"),
    "column_mergers": ("mergers (fusion)", "融合层"),
    "column_prefill": ("prefill", "预填充"),
    "column_decode": ("decoding", "生成"),
    "column_rest": ("everything else", "其余"),
    "within_vision": ("in the vision encoder", "计入视觉编码"),
    "row_article": ("the article", "原文"),
    "table_heading": ("Settings worth considering", "值得考虑的配置"),
    "table_note": (
        "The {shown} cheapest of {total} measured settings; all of them are in settings.csv.",
        "{total} 个实测配置中最便宜的 {shown} 个；全部见 settings.csv。",
    ),
    "not_measured_heading": ("What was not measured", "未能测量的配置"),
    "not_measured_counts": (
        "{oom} settings ran out of memory, {skipped} larger ones were skipped because of that, "
        "{error} failed.",
        "{oom} 个配置显存或内存不足，{skipped} 个更大的配置因此跳过，{error} 个失败。",
    ),
    "failed_items": (
        "Items that could not be used or got no answer: {count} at most in a setting.",
        "无法使用或没有得到答案的请求：单个配置最多 {count} 个。",
    ),
    "column_item": ("item", "请求"),
    "column_status": ("status", "状态"),
    "column_reason": ("reason", "原因"),
    # provenance
    "provenance_heading": ("Assumptions and provenance", "假设与来源"),
    "column_what": ("what", "项目"),
    "column_value": ("value", "内容"),
    "prov_price": ("price", "价格"),
    "prov_source": ("price source", "价格来源"),
    "prov_rate": ("exchange rate", "汇率"),
    "prov_utilisation": ("utilisation", "利用率"),
    "prov_utilisation_value": (
        "{percent} of the paid time does this work; the rest is paid too",
        "付费时间中有 {percent} 用于此任务，其余时间同样计费",
    ),
    "prov_workload": ("workload", "工作负载"),
    "prov_workload_value": (
        "{name}: {items} items, {images} different images, fingerprint {fingerprint}",
        "{name}：{items} 个请求，{images} 张不同图片，指纹 {fingerprint}",
    ),
    "prov_tokens": ("tokens", "token 数"),
    "prov_tokens_value": (
        "today {visual} visual and {text} text tokens in, {new} out, per image",
        "当前配置每张图输入 {visual} 个视觉 token、{text} 个文本 token，输出 {new} 个",
    ),
    "prov_pixels": ("pixels", "像素"),
    "prov_pixels_value": (
        "today {megapixels} megapixels an image after scaling; the files' own sizes are not on "
        "record",
        "当前配置缩放后每张图 {megapixels} 百万像素；原始文件的尺寸没有记录",
    ),
    "prov_ceilings": ("ceilings", "设备上限"),
    "prov_cache": ("feature cache", "特征缓存"),
    "prov_machine": ("machine", "机器"),
    "prov_software": ("software", "软件"),
    "prov_file": ("run file", "运行文件"),
    "prov_file_value": ("{name}, SHA-256 {digest}", "{name}，SHA-256 {digest}"),
    "prov_time": ("measured", "测量时间"),
    "prov_command": ("this report", "本报告"),
    "prov_notes": ("left out", "未计入"),
    "note_environments": (
        "{n} rows of other environments (machine or versions)",
        "{n} 行来自其他环境（机器或版本不同）",
    ),
    "prov_hosts_value": (
        "{n} machines of this kind; work that waits for the CPU differs between them",
        "{n} 台同类机器；受 CPU 限制的部分在各机器间有差异",
    ),
    "note_workloads": (
        "{n} rows of another workload, model or way of measuring",
        "{n} 行的工作负载、模型或测量方式不同",
    ),
}
