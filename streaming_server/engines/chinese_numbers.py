"""Chinese text with its dates, prices, ranges and units written as they are spoken.

For converters to phonemes that read plain numbers only. Every rule takes time linear in the text.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

Replace = Callable[[re.Match[str]], str]

_HAN = "[\u3400-\u9fff]"
_NUMBER = r"\d++(?:\.\d++)?+"
_YEAR = r"(?:1\d|20)\d\d"
_HYPHEN = "[-–—]"
_TO = "[-–—~～〜]"
_MINUS = "[-–−]"
_UNITS = {
    "℃": "摄氏度",
    "°C": "摄氏度",
    "℉": "华氏度",
    "°F": "华氏度",
    "°": "度",
    "㎡": "平方米",
    "m²": "平方米",
    "m2": "平方米",
    "㎥": "立方米",
    "m³": "立方米",
    "m3": "立方米",
    "km²": "平方公里",
    "km2": "平方公里",
    "cm²": "平方厘米",
    "cm2": "平方厘米",
    "cm³": "立方厘米",
    "cm3": "立方厘米",
    "km/h": "公里每小时",
    "m/s": "米每秒",
    "km": "公里",
    "㎞": "公里",
    "m": "米",
    "cm": "厘米",
    "㎝": "厘米",
    "mm": "毫米",
    "㎜": "毫米",
    "kg": "公斤",
    "㎏": "公斤",
    "g": "克",
    "mg": "毫克",
    "㎎": "毫克",
    "L": "升",
    "ml": "毫升",
    "mL": "毫升",
    "kWh": "千瓦时",
    "kW": "千瓦",
    "Hz": "赫兹",
    "kHz": "千赫",
    "MHz": "兆赫",
    "dB": "分贝",
}
_UNIT = "|".join(map(re.escape, sorted(_UNITS, key=len, reverse=True)))
_DATA = "流量|内存|显存|硬盘|宽带|带宽"
"""Words beside which g and m are amounts of data."""
UNIT = re.compile(
    r"(?<=[0-9０-９])"
    + "".join(rf"(?<!(?:{_DATA})[0-9０-９]{{{digits}}})" for digits in (1, 2, 3))
    + rf" ?(?:{_UNIT})(?![A-Za-z0-9]| ?(?:{_DATA}|网|手机|信号|时代|套餐|基站))"
)
"""A unit behind a number, which may have Latin letters."""
_CURRENCIES = {"¥": "元", "￥": "元", "$": "美元", "€": "欧元", "£": "英镑"}
_COUNTED = (
    "个|位|只|条|张|件|次(?![方元函])|天|小时|分钟|秒|斤|公斤|公里|千米|米|块|名|辆|台|部|本|杯|瓶|岁|周|种|家|间|份|"
    "遍|支|年(?!级)"
)
"""Words behind which two is 两."""
_NO_CODE = "[%万亿千个元块台部件条张次名位人天年月秒小多余几通家页种户起]|分(?!机)"
"""What follows a number that is neither a telephone number nor a code."""
_AMOUNT = rf"{_NUMBER}[万亿千百]*+"
_RATIO = rf"{_NUMBER}(?::{_NUMBER})++"
_CLOCK = r"(?:[01]?\d|2[0-4]):[0-5]\d"

_WIDE = str.maketrans("０１２３４５６７８９％＋－／＄＝．", "0123456789%+-/$=.")
_DIGITS = str.maketrans("0123456789", "零一二三四五六七八九")
_CODE = str.maketrans("0123456789-+ ", "零幺二三四五六七八九，加，")
_SCORES = re.compile(r"\d{1,2}:\d{1,2}")
_CENTS = re.compile(r"\.00(?!\d)|(?<=\.[1-9])0(?!\d)")
"""Final zeros, which are not read in a price."""
_HAS_DIGIT = re.compile("[0-9０-９]")


def as_spoken(text: str) -> tuple[str, Sequence[int]]:
    """Return the text as it is spoken, and for each of its characters the index of its origin in ``text``.

    Plain numbers remain digits.
    """
    places: Sequence[int] = range(len(text))
    if not _HAS_DIGIT.search(text):
        return text, places
    text = text.translate(_WIDE)
    for pattern, replace in _RULES:
        text, places = _applied(pattern, replace, text, places)
    return text, places


def _applied(pattern: re.Pattern[str], replace: Replace, text: str, places: Sequence[int]) -> tuple[str, Sequence[int]]:
    """Replace the group ``n`` of each match, or the match where the pattern has no such group."""
    parts, kept, at = list[str](), list[int](), 0
    for found in pattern.finditer(text):
        begin, end = found.span("n" if "n" in pattern.groupindex else 0)
        words = replace(found)
        parts += (text[at:begin], words)
        kept += [*places[at:begin], *[places[begin]] * len(words)]
        at = end
    return ("".join((*parts, text[at:])), [*kept, *places[at:]]) if parts else (text, places)


def _always(words: str) -> Replace:
    return lambda _: words


def _code(found: re.Match[str]) -> str:
    return found["n"].translate(_CODE)


def _ratio(found: re.Match[str]) -> str:
    return re.sub("[:-]", "比", found["n"])


def _grouped(found: re.Match[str]) -> str:
    """Join the groups of a number, but not a list such as 101,102,103."""
    groups = found[0].split(",")
    rises = len(groups[0]) == 3 and all(map(str.__lt__, groups, groups[1:]))
    is_list = rises and (len(groups) > 2 or int(groups[1]) - int(groups[0]) == 1)
    return found[0] if is_list else "".join(groups)


def _date(found: re.Match[str]) -> str:
    year, _, month, day = found.groups()
    return f"{year}年{int(month)}月{int(day)}日" if 1 <= int(month) <= 12 and 1 <= int(day) <= 31 else found[0]


def _time(found: re.Match[str]) -> str:
    hour, minute, second = int(found["hour"]), found["minute"], found["second"]
    spoken = f"{'两' if hour == 2 else hour}点"
    if second or minute != "00":
        spoken += f"零{int(minute)}分" if minute[0] == "0" and minute != "00" else f"{int(minute)}分"
    if second:
        spoken += f"{int(second)}秒"
    return spoken + ("到" if found["to"] else "")


def _price(found: re.Match[str]) -> str:
    return _CENTS.sub("", found[2]) + (found["named"] or _CURRENCIES[found[1]])


def _between(found: re.Match[str]) -> str:
    """A hyphen between two numbers is a minus before an equals sign, else the hyphen of a score, a figure or a range.

    Falling numbers, such as 3-1, are a score or, as in 图3-1, a figure.
    """
    if found["equals"]:
        return "减"
    falls = _SCORES.fullmatch(found["first"] + ":" + found["second"]) and int(found["first"]) > int(found["second"])
    if not falls or found["unit"]:
        return "到"
    return "杠" if found["figure"] else "比"


def _year(found: re.Match[str]) -> str:
    """A year is read by its digits; a number of years is not."""
    years = {None: rf"{_YEAR}|0\d|[89][1-9]", "代": rf"{_YEAR}|0\d", "以上": ""}.get(
        found["period"], rf"{_YEAR}(?<!00)"
    )
    return found["n"].translate(_DIGITS) if re.fullmatch(years, found["n"]) else _number(found["n"])


def _number(digits: str) -> str:
    """A number of up to four digits in words."""
    units = ("千", "百", "十", "")[-len(digits) :]
    words = "".join(
        "零" if digit == "0" else digit.translate(_DIGITS) + unit for digit, unit in zip(digits, units, strict=True)
    )
    words = re.sub("零+", "零", words).strip("零") or "零"
    return words.removeprefix("一") if words.startswith("一十") else words


def _rules() -> list[tuple[re.Pattern[str], Replace]]:
    """Return the rules in their order: each reads what those before it have left."""
    codes = "电话|手机号|热线|传真|号码|拨打|致电|验证码|密码|邮编|账号|卡号|学号|工号"
    ratios = "[高宽男女]比|比分|比例|比率|配比"
    times = "[上下中]午|[早晚]上|凌晨|傍晚|时间|今晚|明早"
    won = "的?(?:比[例分率]|负于|不敌|落败|战平|获胜|取胜|大胜|险胜|战胜|击败|领先|落后)"
    part = "百分之|千分之"
    moment = "[年月日号点分时]"
    names = "[歼轰运直强苏图表楼座栋]|神舟|东风|长征|嫦娥|天宫|红旗|霹雳|攻击|巨浪|附件|[编型]号"
    rules: list[tuple[str, Replace]] = [
        (r"(?<![\d.,])\d{1,3}(?:,\d{3})++(?!,?\d)", _grouped),
        # Dates
        (r"(?<![\d./-])(\d{4})([-/.])(\d{1,2})\2(\d{1,2})(?:日|(?![\d/-]|\.\d))", _date),
        (
            rf"(?<![\d./-]){_YEAR}[-/](?:0[1-9]|1[0-2])(?![\d/-]|\.\d|年)",
            lambda found: f"{found[0][:4]}年{int(found[0][5:])}月",
        ),
        # Telephone numbers and codes
        (r"(?<![\d.+-])\d(?:-\d){2,}+(?![\d.-]| ?=)", lambda found: found[0].replace("-", "").translate(_DIGITS)),
        (
            r"(?<![\d.+-])(?P<n>(?:\+?86[- ]?)?1[3-9]\d{9}|0\d{2,3}[- ]\d{7,8}|\d++(?:-\d++){2,}+)"
            r"(?!-?\d|\.\d|[%万亿元个]| ?=)",
            _code,
        ),
        (
            rf"(?:{codes})[码号]?[是为]?[：: ]{{0,2}}(?P<n>\+?\d(?:-?\d){{2,}}+(?: \d{{3,}}+)*)(?!\.\d|{_NO_CODE})",
            _code,
        ),
        # Ratios and times
        (rf"(?:{times}|{ratios})[是为约]?\d{{1,3}}(?P<n>：)(?=\d)", _always(":")),
        (rf"(?:{ratios})[是为约]?(?P<n>{_RATIO})", _ratio),
        (r"比分[是为约]?(?P<n>\d{1,3}-\d{1,3})(?![\d-])", _ratio),
        (rf"(?<![\d:.-])(?P<n>{_RATIO}|\d{{1,3}}-\d{{1,3}})(?={won})", _ratio),
        (
            r"(?<![\d:.])(?P<hour>[01]?\d|2[0-4]):(?P<minute>[0-5]\d)(?::(?P<second>[0-5]\d))?(?![\d:]|\.\d)"
            rf"(?P<to> ?{_TO} ?(?={_CLOCK}(?!\d)))?",
            _time,
        ),
        (rf"(?<![\d:.])(?P<n>{_RATIO})(?!:)", _ratio),
        # Fractions, prices, units
        (r"(?<![\d./])(\d{1,4})/(\d{1,4})(?![\d/]|\.\d)", lambda found: f"{found[2]}分之{found[1]}"),
        (
            rf"([¥￥$€£]) ?({_MINUS}?{_AMOUNT}(?: ?{_TO} ?{_AMOUNT})?)"
            "(?:(?P<named>[美欧日港]元|英镑)|元|块)?",
            _price,
        ),
        (r"(?<=\d)[万亿]? ?(?P<n>[¥￥$€£])(?!\d)", lambda found: _CURRENCIES[found["n"]]),
        (rf"(?<=[元镑])/(?={_HAN})", _always("每")),
        (
            rf"(?<![\d%℃°度]){_MINUS}(?={_NUMBER}(?: ?(?:{_TO}|[到至]) ?{_MINUS}{_NUMBER})? ?(?:[℃℉°度]|[摄华]氏度))",
            _always("零下"),
        ),
        (UNIT.pattern, lambda found: _UNITS[found[0].strip()]),
        # Percentages
        (r"(?<![\d.-])100%", _always("百分之百")),
        (rf"(?<![\d.])({_NUMBER}) ?{_TO} ?({_NUMBER})%", lambda found: f"百分之{found[1]}到{found[2]}"),
        (rf"(?<![\d.])({_NUMBER}) ?([%‰])", lambda found: f"{'百' if found[2] == '%' else '千'}分之{found[1]}"),
        # Versions and addresses
        (
            r"(?<![\d.])\d++(?:\.\d++){2,}+(?!\.\d)",
            lambda found: found[0].translate(_DIGITS).replace(".", "点"),
        ),
        # Ranges
        (
            rf"(?<!\d)({_YEAR}) ?{_TO} ?(?={_YEAR} ?(?:[学财]?年|赛季))",
            lambda found: found[1].translate(_DIGITS) + "到",
        ),
        (rf"(?<=\d) ?[~～〜] ?(?={_MINUS}?\d|{_MINUS}?(?:{part})|零下)", _always("到")),
        (r"(?<![^(（，,：:])[~～〜](?=\d)", _always("约")),
        (rf"(?<=\d)(?:{moment}|点半)(?P<n> ?{_TO} ?)(?=\d{{1,4}}{moment})", _always("到")),
        (rf"(?<=\d)(?P<same>{_HAN}{{1,4}})(?P<n>{_TO})(?=(?:零下)?{_NUMBER}(?P=same))", _always("到")),
        (rf"(?<=\d) ?{_HYPHEN} ?(?={part}|零下)", _always("到")),
        (
            rf"(?:(?P<figure>[图表式])|(?<![\d.]))(?P<first>{_NUMBER})(?P<n> ?{_HYPHEN} ?)"
            rf"(?=(?P<second>{_NUMBER})(?:(?P<equals>(?:-\d{{1,9}}){{0,9}} ?=)|(?P<unit>[月日号点时]))?)",
            _between,
        ),
        # Signs
        (rf" ?= ?(?={_MINUS}?\d)", _always("等于")),
        (r"(?<=\d) ?\+ ?(?=\d)", _always("加")),
        (r"(?<=\d) ?× ?(?=\d)", _always("乘")),
        (r"(?<=\d) ?÷ ?(?=\d)", _always("除以")),
        (rf"±(?=\d|{part})", _always("正负")),
        # The hyphen of a name, such as 歼-20
        (rf"(?:{names})(?P<n>-)(?=\d++(?!\.\d|[万亿千元米度克公]))", _always("")),
        (rf"(?<!\d)[-−](?=\d|{part})", _always("负")),
        # Numbers
        (r"(?<![\d.])(?P<n>\d{2,4}) ?(?:[学财]?年|赛季)(?P<period>代|[间来]|的?历史|以上)?", _year),
        (r"(?<![\d.])0[1-9](?=[月日号点时])", lambda found: found[0][1]),
        (r"(?<![\d.])(?:0\d++|\d{13,}+)(?!\.\d)", lambda found: found[0].translate(_DIGITS)),
        (rf"(?<![\d.第比])2(?={_COUNTED})", _always("两")),
    ]
    return [(re.compile(pattern, re.ASCII), replace) for pattern, replace in rules]


_RULES = _rules()
