"""A compiled SELECT returns what its queryset returns, and Django compiles it once for each connection."""

from __future__ import annotations

import datetime
import uuid
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal

import pytest
from django.db import connection, connections, models, transaction
from django.db.models import BooleanField, ExpressionWrapper, Q
from django.db.models.sql.compiler import SQLCompiler
from django.test.utils import CaptureQueriesContext, isolate_apps, override_settings

from django_ai.automation.db import prepared, selects
from django_ai.automation.db.selects import compiled_select, read_of_project
from tests.apps.captured.models import Cabinet, Everything, Parcel, Shelf
from tests.apps.reservations.models import Ware
from tests.support.marks import only_on

pytestmark = pytest.mark.django_db(transaction=True)

MOMENT = datetime.datetime(2026, 11, 30, 9, 5, 0, 250, tzinfo=datetime.UTC)
VALUES = {
    "flag": True,
    "number": 2**40,
    "ratio": 0.25,
    "price": Decimal("12.34500"),
    "day": MOMENT.date(),
    "moment": MOMENT,
    "time": datetime.time(9, 5, 0, 250),
    "lasts": datetime.timedelta(hours=1, microseconds=3),
    "other": uuid.UUID(int=7),
    "data": {"text": "ünï 100%", "list": [1, None, 2.5]},
    "raw": b"\x00\xff",
    "address": "10.0.0.1",
}
TEXTS = ["plain", "it's 100 %s", 'a "quoted" \\ one', "ünï", "last"]


def of_instances(keys):
    return Everything.objects.using("default").filter(text__in=keys, number__gte=-5).order_by("text")


def of_some_columns(keys):
    return of_instances(keys).only("text", "moment")


def of_tuples(keys):
    is_far = ExpressionWrapper(Q(day__gt=MOMENT.date()), output_field=BooleanField())
    return of_instances(keys).values_list("text", "id", "flag", "moment", "data", "lasts", "parcel__code", is_far)


def plain(row):
    if isinstance(row, tuple):
        return row
    assert row._state.db == connection.alias
    assert not row._state.adding
    known = {name: value for name, value in row.__dict__.items() if name != "_state"}
    return known | {"raw": bytes(known["raw"]) if known.get("raw") is not None else None}


@pytest.fixture(autouse=True)
def rows():
    for number, text in enumerate(TEXTS):
        Everything.objects.create(**{**VALUES, "number": number}, text=text)
    Everything.objects.create(text="empty", number=-1)
    Everything.objects.create(text="another", number=-9)


@pytest.fixture
def compilations(monkeypatch):
    """Collect the SELECTs that Django compiles."""
    found = []
    compile_statement = SQLCompiler.as_sql

    def counting(self, *args, **kwargs):
        found.append(compile_statement(self, *args, **kwargs))
        return found[-1]

    monkeypatch.setattr(SQLCompiler, "as_sql", counting)
    return found


@pytest.mark.parametrize("build", [of_instances, of_some_columns, of_tuples])
@pytest.mark.parametrize("count", [0, 1, 2, 3, 5, 6])
@pytest.mark.parametrize("use_tz", [True, False])
def test_it_returns_what_the_queryset_returns(build, count, use_tz):
    keys = [*TEXTS, "empty", "none"][:count]
    select = compiled_select(build)
    with override_settings(USE_TZ=use_tz):
        for _ in range(2):
            expected = list(build(keys))
            assert len(expected) == count
            assert list(map(plain, select(keys))) == list(map(plain, expected))


def test_a_change_of_use_tz_compiles_it_anew():
    select = compiled_select(of_instances)
    (aware,) = select(["last"])
    with override_settings(USE_TZ=False):
        (naive,) = select(["last"])
        (expected,) = of_instances(["last"])
    assert (aware.moment, naive.moment) == (MOMENT, expected.moment)
    assert naive.moment.tzinfo is None


def test_booleans_are_booleans_on_each_database():
    flag, is_far = compiled_select(of_tuples)(["last"])[0][2::5]
    assert flag is True
    assert is_far is False


def test_columns_that_were_not_read_are_deferred():
    (row,) = compiled_select(of_some_columns)(["last"])
    assert row.get_deferred_fields() == {
        field.attname for field in Everything._meta.concrete_fields if field.name not in ("id", "text", "moment")
    }
    assert row.data == VALUES["data"]


def test_it_is_compiled_once_for_some_numbers_of_keys(compilations):
    select = compiled_select(of_instances)
    for count in (1, 1, 2, 3, 4, 3):
        assert len(select(TEXTS[:count])) == count
    assert len(compilations) == 3  # for one, two and four keys


def test_it_is_compiled_once_for_each_connection(compilations):
    select = compiled_select(of_instances)

    def other():
        try:
            return [plain(row) for _ in range(2) for row in select(["last"])]
        finally:
            connections.close_all()

    (mine,) = select(["last"])
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(other).result() == [plain(mine)] * 2
    select(["last"])
    assert len(compilations) == 2


def test_so_many_keys_that_it_is_not_compiled_once(compilations):
    select = compiled_select(of_instances)
    keys = [*TEXTS, *(f"none {number}" for number in range(selects.MAX_KEYS))]
    for _ in range(2):
        assert [row.text for row in select(keys)] == [row.text for row in of_instances(keys)]
    assert len(compilations) == 4


def test_the_statement_passes_the_cursor_of_django():
    select = compiled_select(of_instances)
    seen = []

    def wrapper(execute, sql, params, many, context):
        seen.append(sql)
        return execute(sql, params, many, context)

    with transaction.atomic(), CaptureQueriesContext(connection) as queries, connection.execute_wrapper(wrapper):
        select(["last"])
    assert len(seen) == len(queries) == 1
    assert connection.ops.quote_name("Captured every-thing") in seen[0]
    assert "last" in queries[0]["sql"]


def test_a_key_that_is_compared_twice():
    def build(keys):
        return Everything.objects.using("default").filter(Q(text__in=keys) | Q(parcel__code__in=keys))

    with_code = Everything.objects.create(text="of a parcel", parcel=Parcel.objects.create(code="last"))
    assert set(compiled_select(build)(["last"])) == {with_code, Everything.objects.get(text="last")}


@only_on("postgresql", reason="only PostgreSQL prepares")
@pytest.mark.parametrize("build", [of_instances, of_tuples])
def test_it_is_prepared_outside_of_transactions(build, monkeypatch):
    connection.close()
    monkeypatch.setattr(prepared, "WARM_UP", 1)
    select = compiled_select(build)
    for _ in range(3):
        assert list(map(plain, select(TEXTS[:3]))) == list(map(plain, build(TEXTS[:3])))
    with connection.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM pg_prepared_statements WHERE from_sql")
        assert cursor.fetchone() == (1,)
    connection.close()


@pytest.mark.parametrize(
    "build",
    [
        lambda keys: of_instances(keys).select_related("parcel"),
        lambda keys: of_instances(keys).annotate(is_far=Q(number__gt=3)),
        lambda keys: of_instances(keys).values("text"),
        lambda keys: Everything.objects.using("default").filter(text__in=[key.upper() for key in keys]),
    ],
)
def test_it_refuses_what_it_cannot_return(build):
    with pytest.raises(TypeError, match=r"has more than the columns|returns neither|does not have its keys"):
        compiled_select(build)(["last"])


# -- rows of the project's models --------------------------------------------------------------------------------------


class Marked(models.CharField):
    """A column that is selected in its own way."""

    def select_format(self, compiler, sql, params):
        return f"UPPER({sql})", params


@pytest.fixture
def entities():
    for number in range(3):
        Shelf.objects.create(number=f"it's {number} %s", due_at=MOMENT)
        Cabinet.objects.create(number=f"c{number}", doors=number)
        Ware.objects.create(code=Decimal(number) / 4, price=number)
    return {
        model: [model._meta.pk.to_python(str(pk)) for pk in model.objects.order_by("pk").values_list("pk", flat=True)]
        for model in (Everything, Shelf, Cabinet, Ware)
    }


@pytest.mark.parametrize("model", [Everything, Shelf, Cabinet, Ware])
@pytest.mark.parametrize("count", [0, 1, 3])
def test_rows_of_the_project_are_those_of_in_bulk(model, count, entities, compilations):
    pks = entities[model][:count]
    assert len(pks) == count
    expected = model._base_manager.in_bulk(pks)
    del compilations[:]
    for _ in range(2):
        found = read_of_project(model._base_manager.using("default"), pks)
        assert {pk: plain(row) for pk, row in found.items()} == {pk: plain(row) for pk, row in expected.items()}
    # The key of a child is a relation. What an occurrence has read before is compiled already.
    assert len(compilations) == 2 * (count > 0) if model is Cabinet else len(compilations) <= 1


def test_rows_of_the_project_pass_a_manager_of_its_own(entities, monkeypatch):
    class Big(models.Manager):
        def get_queryset(self):
            return super().get_queryset().filter(number__gt=1)

    manager = Big()
    manager.model = Everything
    monkeypatch.setattr(Everything._meta, "base_manager", manager)
    found = read_of_project(Everything._base_manager.using("default"), entities[Everything])
    assert {row.number for row in found.values()} == {2, 3, 4}


def test_relations_that_are_to_be_read_too_are_read():
    parcel = Parcel.objects.create(code="read")
    row = Everything.objects.create(parcel=parcel)
    (found,) = read_of_project(Everything._base_manager.using("default").select_related("parcel"), [row.pk]).values()
    assert "parcel" in found._state.fields_cache


@isolate_apps("tests.apps.captured")
def test_columns_that_are_selected_in_their_own_way():
    class Loud(models.Model):
        number = models.CharField(primary_key=True, max_length=20)
        is_clean = models.BooleanField()
        name = Marked(max_length=20, db_column="number")

        class Meta:
            app_label = "captured"
            db_table = Shelf._meta.db_table

    Shelf.objects.create(number="quiet")
    (found,) = read_of_project(Loud._base_manager.using("default"), ["quiet"]).values()
    assert (found.number, found.name, found.is_clean) == ("quiet", "QUIET", False)
