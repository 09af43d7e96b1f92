// The page's own words in two languages. What the server says is shown as it says it.

export const WORDS = {
  en: {
    title: "Streaming speech",
    other: "中文",
    text: "Text to speak",
    placeholder: "Write something to hear…",
    characters: { one: "{n} character", other: "{n} characters" },
    ofLimit: "{n} / {limit} characters",
    estimated: "{count}, about {n} s",
    samples: "Example texts",
    waveform: "Waveform of the speech",
    play: "Play",
    stop: "Stop",
    clock: "Heard so far",
    download: "Download",
    firstAudio: "First sound",
    buffered: "Buffered",
    received: "Received",
    factor: "Real-time factor",
    settings: "Generation",
    changed: "{n} changed",
    reset: "Back to defaults",
    curl: "The same on the command line",
    copy: "Copy",
    copied: "Copied",
    voice: "Voice",
    voices: { one: "{n} voice", other: "{n} voices" },
    listen: "Listen to {name}",
    pause: "Stop listening to {name}",
    hold: "Pause",
    resume: "Resume",
    held: "Paused",
    clip: "The complete speech: replay, seek, volume",
    missing: "the recording is gone",
    sound: "Sound",
    format: "Format",
    auto: "Automatic ({name})",
    ogg: "Opus",
    webm: "Opus in WebM",
    pcm: "PCM, uncompressed",
    mp3: "MP3",
    bitrate: "Bitrate",
    by_webcodecs: "Decoded in the page, sample by sample.",
    by_mediasource: "Played by the browser's media player.",
    by_pcm: "Plain samples; needs no decoder.",
    queue: "Queue",
    playKey: "plays",
    stopKey: "stops",
    unknown: "No connection",
    idle: "Ready",
    busy: "Speaking",
    busyWaiting: "Speaking, {n} waiting",
    locked: "API key needed",
    key: "API key",
    keyAbout: "This server requires an API key. The page sends it in a request header, never in an address.",
    keyKeep: "Remember it on this device. Otherwise it is forgotten with the tab.",
    keyUse: "Continue",
    keyForget: "Forget the key",
    keyRefused: "The server does not accept this key.",
    keyNeeded: "The server requires an API key.",
    close: "Close",
    nobody: "Nobody is speaking. The next request starts at once.",
    lost: "The server does not answer. Trying again…",
    now: "Now",
    you: "You",
    someone: "Someone",
    others: "and {n} more",
    seconds: "{n} s",
    aboutSeconds: "about {n} s",
    asking: "Waiting for the first sound…",
    waitingAt: "In the queue: number {n}, {wait}",
    playing: "Playing",
    resuming: "The connection broke; it continues…",
    done: "Finished",
    stopped: "Stopped",
    failed: "Failed",
    unreachable: "The server cannot be reached.",
    broken: "The connection was lost before the speech was complete.",
    retry: "Retry",
    blank: "Enter the text to speak.",
    tooLong: "The text has {n} characters; at most {limit} are allowed.",
    badValue: "{name}: {message}.",
    loading: "The model is still loading. Try again in a moment.",
    voiceFailed: "The recording of this voice is missing or cannot be read. Choose another voice.",
    busyNow: "The server cannot take another request now. Try again in a moment.",
    serverFailed: "The synthesis failed on the server. Its log has the details.",
    refused: "The server refused the request: {message}",
    figures: "Measurements",
    device: "Engine: {engine}",
    engine_hibari: "Default voice",
    engine_espeak: "eSpeak NG",
    engine_indextts: "IndexTTS {version}",
    engine_indextts2: "IndexTTS {version}",
    engine_higgs: "HiggsAudio v{version}",
    engine_other: "{engine} {version}",
    loadedFixed: "{name}: {voices}, no cloning.",
    loadedCloning: "{name}: {voices}, cloned from recordings.",
    addModel: "Add a model",
    addModelAbout: "A model clones the voice of any recording. Download one, then start the server with its folder:",
    model_indextts15: "IndexTTS 1.5: voice cloning in Chinese and English",
    model_indextts2: "IndexTTS 2: voice cloning and emotion",
    model_higgs: "HiggsAudio v2: voice cloning, dialogues and scenes",
    addModelMore: "docs/models.md describes the engines; checkpoints/README.md lists files and licences.",
    reference: "API reference",
  },
  zh: {
    title: "流式语音合成",
    other: "English",
    text: "要朗读的文本",
    placeholder: "写点什么来听听…",
    characters: { other: "{n} 个字符" },
    ofLimit: "{n}/{limit} 个字符",
    estimated: "{count}，约 {n} 秒",
    samples: "示例文本",
    waveform: "语音波形",
    play: "播放",
    stop: "停止",
    clock: "已播放",
    download: "下载",
    firstAudio: "首音延迟",
    buffered: "已缓冲",
    received: "已接收",
    factor: "实时率",
    settings: "生成参数",
    changed: "已修改 {n} 项",
    reset: "恢复默认值",
    curl: "对应的命令行",
    copy: "复制",
    copied: "已复制",
    voice: "音色",
    voices: { other: "{n} 个音色" },
    listen: "试听 {name}",
    pause: "停止试听 {name}",
    hold: "暂停",
    resume: "继续",
    held: "已暂停",
    clip: "完整语音：重播、定位、音量",
    missing: "录音文件不存在",
    sound: "声音",
    format: "格式",
    auto: "自动（{name}）",
    ogg: "Opus",
    webm: "Opus（WebM）",
    pcm: "PCM（未压缩）",
    mp3: "MP3",
    bitrate: "码率",
    by_webcodecs: "在页面内逐个采样解码。",
    by_mediasource: "由浏览器的媒体播放器播放。",
    by_pcm: "直接播放采样，无需解码。",
    queue: "队列",
    playKey: "播放",
    stopKey: "停止",
    unknown: "未连接",
    idle: "就绪",
    busy: "合成中",
    busyWaiting: "合成中，{n} 个等待",
    locked: "需要 API 密钥",
    key: "API 密钥",
    keyAbout: "此服务器需要 API 密钥。密钥只通过请求头发送，不会出现在网址中。",
    keyKeep: "在此设备上记住密钥；否则关闭标签页后即清除。",
    keyUse: "继续",
    keyForget: "清除密钥",
    keyRefused: "服务器不接受此密钥。",
    keyNeeded: "服务器需要 API 密钥。",
    close: "关闭",
    nobody: "当前空闲，新的请求会立即开始。",
    lost: "服务器没有响应，正在重试…",
    now: "当前",
    you: "你",
    someone: "其他人",
    others: "另有 {n} 个",
    seconds: "{n} 秒",
    aboutSeconds: "约 {n} 秒",
    asking: "正在等待第一个声音…",
    waitingAt: "排队中：第 {n} 位，{wait}",
    playing: "正在播放",
    resuming: "连接中断，正在续传…",
    done: "播放完毕",
    stopped: "已停止",
    failed: "合成失败",
    unreachable: "无法连接服务器。",
    broken: "连接中断，语音没有接收完整。",
    retry: "重试",
    blank: "请输入要朗读的文本。",
    tooLong: "文本有 {n} 个字符，最多允许 {limit} 个。",
    badValue: "{name} 的值无效，有效范围：{range}。",
    loading: "模型仍在加载，请稍后重试。",
    voiceFailed: "该音色的录音不存在或无法读取，请选择其他音色。",
    busyNow: "服务器暂时无法接受新的请求，请稍后重试。",
    serverFailed: "服务器合成失败，详情见服务器日志。",
    refused: "服务器拒绝了请求：{message}",
    figures: "测量数据",
    device: "引擎：{engine}",
    engine_hibari: "默认语音",
    engine_espeak: "eSpeak NG",
    engine_indextts: "IndexTTS {version}",
    engine_indextts2: "IndexTTS {version}",
    engine_higgs: "HiggsAudio v{version}",
    engine_other: "{engine} {version}",
    loadedFixed: "{name}：{voices}，不支持声音克隆。",
    loadedCloning: "{name}：{voices}，由录音克隆。",
    addModel: "添加模型",
    addModelAbout: "加载模型后，可以克隆任意录音中的声音。先下载模型，再用模型文件夹启动服务器：",
    model_indextts15: "IndexTTS 1.5：中英文声音克隆",
    model_indextts2: "IndexTTS 2：声音克隆与情感控制",
    model_higgs: "HiggsAudio v2：声音克隆、对话与场景",
    addModelMore: "各引擎的说明见 docs/models.md，文件与许可证见 checkpoints/README.md。",
    reference: "API 文档",
  },
};

export const HINTS = {
  en: {
    stream_granularity: "when sound leaves: with every step, or a sentence at a time",
    do_sample: "draw codes by chance instead of always taking the likeliest",
    temperature: "higher is livelier, lower is steadier",
    top_p: "share of the likeliest codes to draw from",
    top_k: "how many codes to draw from; 0 is all",
    num_beams: "readings compared for each sentence; a token stream uses one",
    repetition_penalty: "keeps it from repeating itself",
    length_penalty: "above 0 prefers longer readings",
    max_text_tokens_per_sentence: "longer sentences are split",
    max_mel_tokens: "longest sentence, in codes",
    seed: "the same number gives the same reading",
    opus_complexity: "effort of the encoder",
    verbose: "the server logs the details",
  },
  zh: {
    stream_granularity: "逐步输出，或整句输出",
    do_sample: "随机采样，而不是总取最可能的编码",
    temperature: "越高越活泼，越低越稳定",
    top_p: "只从概率最高的部分采样",
    top_k: "参与采样的编码数，0 表示全部",
    num_beams: "每句比较的候选数；逐步输出时为 1",
    repetition_penalty: "抑制重复",
    length_penalty: "大于 0 时偏向更长的结果",
    max_text_tokens_per_sentence: "更长的句子会被切分",
    max_mel_tokens: "一句的最大编码数",
    seed: "相同的种子得到相同的结果",
    opus_complexity: "编码器的计算量",
    verbose: "服务器记录详细日志",
  },
};

export const SAMPLES = {
  en: {
    Greeting: "Hello! This sentence begins to sound before it has been finished.",
    "Two languages": "你好，欢迎使用流式语音合成。It speaks English as well.",
    "A little story":
      "Every morning the lighthouse keeper counted the ships. On Monday there were three. On Tuesday, seven. " +
      "On Wednesday the fog came, and she counted their horns instead: one deep, two high, and one that sounded " +
      "like a kettle. She waved at them all the same. When the fog lifted, every ship waved back.",
  },
  zh: {
    问候: "你好！这句话还没有合成完，就已经开始播放了。",
    中英混合: "你好，欢迎使用流式语音合成。It speaks English as well.",
    小故事:
      "守灯塔的人每天早上数船。星期一有三艘，星期二有七艘。星期三起了大雾，她就改数汽笛：一声低，两声高，" +
      "还有一声像烧开的水壶。她照样朝它们挥手。雾散了以后，每一艘船都向她挥手。",
  },
};

const STORED = "player-language";

export let language = stored() ?? (navigator.language.toLowerCase().startsWith("zh") ? "zh" : "en");

// A word with its values; numbers in the language's own form. Words with plural forms choose theirs by `n`.
export function t(key, values = {}) {
  const word = WORDS[language][key];
  const form = typeof word === "string" ? word : word[new Intl.PluralRules(language).select(values.n)] ?? word.other;
  return form.replace(/\{(\w+)\}/g, (_, name) => {
    const value = values[name];
    return typeof value === "number" ? value.toLocaleString(language) : value;
  });
}

export function setLanguage(name) {
  language = name;
  try {
    localStorage.setItem(STORED, name);
  } catch {
    // a browser that stores nothing asks again next time
  }
}

// Every element that names its words.
export function translate(root) {
  document.documentElement.lang = language === "zh" ? "zh-CN" : "en";
  document.title = t("title");
  for (const element of root.querySelectorAll("[data-text]")) element.textContent = t(element.dataset.text);
  for (const element of root.querySelectorAll("[data-label]")) {
    element.setAttribute("aria-label", t(element.dataset.label));
  }
  for (const element of root.querySelectorAll("[data-placeholder]")) {
    element.placeholder = t(element.dataset.placeholder);
  }
}

function stored() {
  try {
    const name = localStorage.getItem(STORED);
    return name in WORDS ? name : null;
  } catch {
    return null;
  }
}
