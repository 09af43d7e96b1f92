// The page's own words in two languages. What the server says is shown as it says it.

export const WORDS = {
  en: {
    title: "Streaming speech",
    other: "中文",
    text: "Text to speak",
    placeholder: "Write something to hear…",
    characters: "{n} characters",
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
    voices: "{n} recordings",
    listen: "Listen to {name}",
    pause: "Stop listening to {name}",
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
    failed: "It did not work",
    unreachable: "The server cannot be reached.",
    broken: "The connection broke and did not come back.",
  },
  zh: {
    title: "流式语音合成",
    other: "English",
    text: "要朗读的文本",
    placeholder: "写点什么来听听…",
    characters: "{n} 个字符",
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
    voices: "{n} 段录音",
    listen: "试听 {name}",
    pause: "停止试听 {name}",
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
    failed: "没有成功",
    unreachable: "无法连接服务器。",
    broken: "连接中断且未能恢复。",
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

export function t(key, values = {}) {
  return WORDS[language][key].replace(/\{(\w+)\}/g, (_, name) => values[name]);
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
