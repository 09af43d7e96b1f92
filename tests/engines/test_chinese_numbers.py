from __future__ import annotations

import pytest

from streaming_server.engines.chinese_numbers import as_spoken
from streaming_server.engines.espeak.engine import prepared
from streaming_server.engines.espeak.languages import runs
from streaming_server.engines.espeak.library import Timbre

SPOKEN = {
    # Thousands
    "销量3,000台": "销量3000台",
    "12,345,678元": "12345678元",
    "选1,2,3号": "选1,2,3号",
    # Dates
    "2024-05-06开会": "二零二四年5月6日开会",
    "２０２４/5/6开会": "二零二四年5月6日开会",
    "2024-05": "二零二四年5月",
    "05月06日": "5月6日",
    "2020-2024年，2023-2024学年": "二零二零到二零二四年，二零二三到二零二四学年",
    "90年代，98年，10年来，5000年历史": "九十年代，九八年，十年来，五千年历史",
    # Signs
    "气温-5℃": "气温零下5摄氏度",
    "气温−5°C": "气温零下5摄氏度",
    "-5~-10℃": "零下5到零下10摄氏度",
    "（-5）": "（负5）",
    "利润-500万，增长-3.5%": "利润负500万，增长负百分之3.5",
    "歼-20，东风-41": "歼20，东风41",
    "5-3=2，3×4=12，1+1=2": "5减3等于2，3乘4等于12，1加1等于2",
    # Prices
    "价格¥100，$99.50，￥5万，€1,000，¥100-200": "价格100元，99.5美元，5万元，1000欧元，100到200元",
    "100€，5万$": "100欧元，5万美元",
    # Ranges
    "增长5%~10%": "增长百分之5到百分之10",
    "5-10%，0.5%-1%": "百分之5到10，百分之0.5到百分之1",
    "3~5个，第3-5章，3天-5天": "3到5个，第3到5章，3天到5天",
    "100%，5‰，±0.5%": "百分之百，千分之5，正负百分之0.5",
    # Times, ratios and fractions
    "上午10:30出发，2:05到": "上午10点30分出发，两点零5分到",
    "8:00-17:30，12:30:45": "8点到17点30分，12点30分45秒",
    "比分3:2，16:9，比例1:50，以21:15获胜": "比分3比2，16比9，比例1比50，以21比15获胜",
    "下午3：30，比分是3：2": "下午3点30分，比分是3比2",
    "步骤1：30克": "步骤1：30克",
    "3-1获胜": "3比1获胜",
    "3/4": "4分之3",
    # Units
    "面积50㎡，60km/h，1.75m，50 kg": "面积50平方米，60公里每小时，1.75米，50公斤",
    "5GB，3D，5G网络": "5GB，3D，5G网络",
    # Codes
    "13800138000": "幺三八零零幺三八零零零",
    "电话010-12345678": "电话零幺零，幺二三四五六七八",
    "拨打110，手机号3000": "拨打幺幺零，手机号三零零零",
    "400-800-1234，13800138000元": "四零零，八零零，幺二三四，13800138000元",
    "007，0.05，192.168.1.1": "零零七，0.05，一九二点一六八点一点一",
    # Two
    "2个人，第2个，12个，2年级": "两个人，第2个，12个，2年级",
    # Plain text
    "你好，周一-周五，3月5日，1.5亿": "你好，周一-周五，3月5日，1.5亿",
}


@pytest.mark.parametrize(("text", "spoken"), SPOKEN.items())
def test_numbers_are_written_as_they_are_spoken(text: str, spoken: str) -> None:
    found, places = as_spoken(text)
    assert found == spoken
    assert len(places) == len(found)
    assert list(places) == sorted(places)
    assert places[0] == 0
    if text[-1] == found[-1] > "一":
        assert places[-1] == len(text) - 1


def test_espeak_is_given_them() -> None:
    utterances = prepared("Ok, 气温-5℃，销量3,000台", Timbre())[0]
    assert [(each.language, each.text) for each in utterances] == [
        ("en-us", "Ok, "),
        ("cmn", "气温零下5摄氏度，销量3000台"),
    ]


def test_units_belong_to_the_mandarin_before_them() -> None:
    assert list(runs("体重60kg，GPT-4在5km外")) == [("cmn", "体重60kg，"), ("en-us", "GPT-4"), ("cmn", "在5km外")]
    assert list(runs("Run 5km 快")) == [("en-us", "Run 5km "), ("cmn", "快")]


@pytest.mark.parametrize(
    "text", ["1" * 50_000, "-" * 50_000, "1," * 25_000, "1:" * 25_000, "1-" * 25_000, "0.5%~" * 10_000]
)
def test_a_text_without_end_is_read(text: str) -> None:
    assert len(as_spoken(text)[0]) > 100
