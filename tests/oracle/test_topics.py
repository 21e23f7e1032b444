"""`verify` on a real Kafka whose topics were filled by hand, as right and wrong workers would fill them."""

import json

import msgspec
import pytest
from confluent_kafka import Consumer, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic

from app.contract import rows
from app.contract.events import Rejection
from app.policy.model import Policy
from app.settings import Settings
from app.verify.compare import verify
from app.verify.logs import fix_spans, read_log, to_record, unread_spans
from app.verify.oracle import answer
from app.verify.partition import owner_of
from app.verify.records import VerifyError
from tests.conftest import Services
from tests.oracle.cases import MINUTE, click, conversion, following, policy, view

HOME = owner_of("u", 2, "murmur2")
AWAY = 1 - HOME


class Site:
    """A deployment's topics of two partitions, and a transactional producer that plays its workers."""

    def __init__(self, services: Services, name: str) -> None:
        topics = ["events", "dlq", "rekeyed", "deltas", "policy", "attributed", "counts", "journeys", "models"]
        names = {f"{topic}_topic": f"{name}.{topic}" for topic in topics[1:]}
        groups = {"counter_group": f"{name}.counter", "aggregator_group": f"{name}.aggregator"}
        self.settings = Settings(bootstrap=services.bootstrap, events_topics=f"{name}.events", **names, **groups)
        admin = AdminClient(self.settings.client())
        for made in admin.create_topics([NewTopic(f"{name}.{topic}", 2) for topic in topics]).values():
            made.result(30)
        self.events = f"{name}.events"
        self.producer = Producer(self.settings.client(**{"transactional.id": name}))
        self.producer.init_transactions(30)

    def send(self, *messages: dict, abort: bool = False) -> None:
        """One transaction, which leaves a control record at the end of every partition that it touches."""
        self.producer.begin_transaction()
        for message in messages:
            self.producer.produce(**message)
        if abort:
            self.producer.flush(30)
            self.producer.abort_transaction(30)
        else:
            self.producer.commit_transaction(30)

    def commit(self, group: str, *topics: str, short: int = 0) -> None:
        """Moves a group to the last record of each partition plus one, less `short`: before the control records."""
        spans = fix_spans(self.settings, topics)
        read = {where: first for where, (first, _) in spans.items()}
        read |= {
            (message.topic(), message.partition()): message.offset() + 1 for message in read_log(self.settings, spans)
        }
        consumer = Consumer(self.settings.client(**{"group.id": group}))
        consumer.commit(
            offsets=[TopicPartition(*where, max(at - short, 0)) for where, at in read.items()], asynchronous=False
        )
        consumer.close()

    def work(
        self,
        wrong: dict | None = None,
        rules: Policy | None = None,
        wrong_touch: dict | None = None,
        wrong_count: dict | None = None,
        lost_letters: bool = False,
    ) -> None:
        """Publishes the answer to the raw events, some fields of the attributed row made `wrong`, of the journey's touch, and of
        the count rows that have a conversion.
        """
        settings = self.settings
        raw = [to_record(message) for message in read_log(settings, fix_spans(settings, [self.events]))]
        result = answer(raw, rules or policy(), 2)
        away = next(record for record in raw if record.partition == AWAY)
        source = f"{away.topic}/{away.partition}/{away.offset}".encode()
        marks = [[HOME, 0, {self.events: [0, 99], settings.rekeyed_topic: [0, 99]}], [AWAY, 0, {self.events: [0, 99]}]]
        outputs = [
            {
                "topic": settings.rekeyed_topic,
                "partition": HOME,
                "value": away.value,
                "timestamp": away.timestamp_ms,
                "headers": [("onecount-source", source)],
            }
        ]
        outputs += [
            {"topic": settings.deltas_topic, "partition": number, "value": json.dumps([2, marks, []])}
            for number in (0, 1)
        ]
        for key, row in result.attributed.items():
            row = msgspec.structs.replace(row, revision=1, **(wrong or {}))
            outputs.append(
                {"topic": settings.attributed_topic, "partition": HOME, "key": key, "value": rows.encode(row)}
            )
        for key, row in result.journeys.items():
            touches = [msgspec.structs.replace(touch, **(wrong_touch or {})) for touch in row.touches]
            row = msgspec.structs.replace(row, revision=1, touches=touches)
            outputs.append({"topic": settings.journeys_topic, "partition": HOME, "key": key, "value": rows.encode(row)})
        for key, row in result.models.items():
            outputs.append({"topic": settings.models_topic, "partition": HOME, "key": key, "value": rows.encode(row)})
        for key, row in result.counts.items():
            row = msgspec.structs.replace(row, **(wrong_count or {})) if row.conversions else row
            outputs.append({"topic": settings.counts_topic, "partition": 0, "key": key, "value": rows.encode(row)})
        for coordinates, reason in result.rejected.items() if not lost_letters else ():
            letter = rows.dead_letter(Rejection(reason, "", ""), *coordinates, 0, None, b"")
            outputs.append({"topic": settings.dlq_topic, "value": rows.encode(letter)})
        self.send(*outputs)
        self.commit(settings.counter_group, self.events, settings.rekeyed_topic)
        self.commit(settings.aggregator_group, settings.deltas_topic)


def raw(site: Site, value, partition: int = HOME) -> dict:
    whole = {
        "topic": site.events,
        "partition": partition,
        "value": json.dumps(value) if isinstance(value, dict) else value,
    }
    return whole | {"timestamp": value["event_time"] if isinstance(value, dict) else 1}


@pytest.fixture
def site(services: Services, topic_prefix: str) -> Site:
    """A site whose raw topic holds a click, its conversion on a foreign partition, rubbish, and aborted events."""
    made = Site(services, topic_prefix)
    made.send(raw(made, click("k", 0)), raw(made, b"{"), raw(made, conversion("x", MINUTE, value=5), AWAY))
    made.send(raw(made, view("never", 0)), raw(made, view("never", 0), AWAY), abort=True)
    return made


@pytest.fixture(params=["whole", "in slices"])
def held(request) -> dict:
    """How the log is held: as a whole, or a partition each in processes of their own."""
    return {"slice_records": 0, "processes": 2} if request.param == "in slices" else {}


def test_what_right_workers_published_is_verified(site, held):
    site.work()
    report = verify(site.settings, policy(), wait_s=5, **held)
    assert report.shown == ()
    assert (report.ok, report.produced, report.accepted, report.rejected) == (True, 3, 2, {"invalid_json": 1})
    assert (report.attributed_rows, report.count_rows, report.notes) == ({"counted": 1}, 2, ())


def test_a_wrong_row_is_told_with_its_events(site, held):
    site.work(wrong={"value": 6})
    report = verify(site.settings, policy(), wait_s=5, **held)
    (difference,) = report.shown
    assert report.differences == {site.settings.attributed_topic: 1}
    assert difference.details == ("value: must be 5.0, is 6.0",)
    assert json.loads(report.events[site.events, AWAY, 0])["event_id"] == "x"


def test_a_wrong_count_and_a_missing_letter_are_told_with_their_events(site, held):
    site.work(wrong_count={"conversions": 2}, lost_letters=True)
    report = verify(site.settings, policy(), wait_s=5, **held)
    assert report.differences == {site.settings.counts_topic: 1, site.settings.dlq_topic: 1}
    letter, count = report.shown
    assert letter.details == ("must have one letter, invalid_json; has none",)
    assert report.events[letter.behind[0]] == b"{"
    assert count.details == ("conversions: must be 1, is 2",)
    assert [json.loads(report.events[where])["event_id"] for where in count.behind] == ["x"]


def test_an_event_without_its_copy_is_told_and_counted(site, held):
    site.work()
    site.send(raw(site, conversion("y", 2 * MINUTE, value=5), AWAY))
    site.send(
        {
            "topic": site.settings.deltas_topic,
            "partition": 0,
            "value": json.dumps([2, [[AWAY, 0, {site.events: [99, 100]}]], []]),
        }
    )
    site.commit(site.settings.counter_group, site.events, site.settings.rekeyed_topic)
    site.commit(site.settings.aggregator_group, site.settings.deltas_topic)
    report = verify(site.settings, policy(), wait_s=5, **held)
    fault, row, count = report.shown
    assert "belongs on partition" in fault.details[0]
    assert "is missing" in row.details[0]
    assert json.loads(row.about)[4] == "y"
    assert "is missing" in count.details[0]
    assert [json.loads(report.events[where])["event_id"] for where in count.behind] == ["y"]


def test_workers_that_did_nothing_are_told_by_their_lag(site):
    with pytest.raises(VerifyError, match=rf"behind.*{site.events}/0 up to \d+, {site.events}/1 up to \d+"):
        verify(site.settings, policy(), wait_s=0)


def test_control_records_behind_the_committed_offset_are_no_lag_and_one_record_is(site):
    spans = fix_spans(site.settings, [site.events])
    site.commit(site.settings.counter_group, site.events)
    assert unread_spans(site.settings, site.settings.counter_group, spans) == {}
    site.commit(site.settings.counter_group, site.events, short=1)
    assert set(unread_spans(site.settings, site.settings.counter_group, spans)) == set(spans)


def test_an_aggregator_that_is_behind_is_told_too(site):
    site.work()
    site.send({"topic": site.settings.deltas_topic, "partition": 1, "value": b"[2, [], []]"})
    with pytest.raises(VerifyError, match=rf"{site.settings.aggregator_group} .*deltas/1 up to \d+"):
        verify(site.settings, policy(), wait_s=0)


def test_raw_topics_without_their_first_records_are_refused(site):
    site.work()
    admin = AdminClient(site.settings.client())
    for done in admin.delete_records([TopicPartition(site.events, HOME, 1)]).values():
        done.result(30)
    with pytest.raises(VerifyError, match="retention has removed the first records"):
        verify(site.settings, policy(), wait_s=0)


def test_a_missing_topic_is_told(site):
    gone = site.settings.model_copy(update={"counts_topic": "no.such.topic"})
    site.work()
    with pytest.raises(VerifyError, match=r"topic no\.such\.topic cannot be read"):
        verify(gone, policy(), wait_s=5)


def test_journeys_models_and_counts_over_all_are_verified_too(site):
    site.work(rules=following())
    report = verify(site.settings, following(), wait_s=5)
    assert report.shown == ()
    assert (report.journey_rows, report.model_rows, report.count_rows) == ({"counted": 1}, 5, 3)


def test_a_wrong_journey_and_missing_models_are_told(site, held):
    gone = site.settings.model_copy(update={"models_topic": site.settings.policy_topic})
    site.work(rules=following(), wrong_touch={"campaign_id": "other"})
    report = verify(gone, following(), wait_s=5, **held)
    assert report.differences == {site.settings.journeys_topic: 1, gone.models_topic: 5}
    journey, model, *_ = report.shown
    assert journey.details == ("touches[0].campaign_id: must be 'c', is 'other'",)
    assert [json.loads(report.events[where])["event_id"] for where in journey.behind] == ["x", "k"]
    assert model.details[0].startswith("is missing: ")


def test_a_missing_topic_of_journeys_is_told_where_the_policy_has_them(site):
    site.work()
    for name in ("journeys_topic", "models_topic"):
        gone = site.settings.model_copy(update={name: "no.such.topic"})
        with pytest.raises(VerifyError, match=r"no\.such\.topic cannot be read .* run `onecount topics create` first"):
            verify(gone, following(), wait_s=5)
    assert verify(gone, policy(), wait_s=5).ok
