# ruff: noqa: E501
"""The kinds of documents: their fields, the keys of the fields in schemas, and their labels in forms."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Field:
    """One field. `type`: a maker of names.py, or date, time, money, int, bool, list:<maker>, enum:<a,b,c>.

    `keys`: its names in training schemas. `held_keys`: its names in unseen schemas only.
    """

    name: str
    type: str
    keys: tuple[str, ...]
    held_keys: tuple[str, ...]
    about: str
    labels: dict[str, tuple[str, ...]]


def _field(name: str, kind: str, keys: str, held: str, about: str, en: str, ru: str) -> Field:
    labels = {"en": tuple(en.split("|")), "ru": tuple(ru.split("|"))}
    return Field(name, kind, tuple(keys.split()), tuple(held.split()), about, labels)


KINDS: dict[str, tuple[Field, ...]] = {
    "notice": (
        _field("issuer", "org", "issuer organization sender published_by", "announcer", "who gives notice",
               "From|Issued by|Organization", "От кого|Организация|Кем выдано"),
        _field("category", "enum:outage,closure,recall,deadline,inspection", "category kind type topic", "class_of_notice",
               "what the notice is about", "", ""),
        _field("starts", "date", "starts start_date from begins", "first_day", "first day", "From|Starts|Begins", "Начало|С"),
        _field("ends", "date", "ends end_date until till", "last_day", "last day", "Until|Ends", "Окончание|До"),
        _field("place", "venue", "place location where site", "spot", "where", "Place|Where", "Место|Где"),
        _field("phone", "phone", "phone tel telephone", "call_number", "telephone", "Phone|Tel", "Телефон|Тел"),
        _field("email", "email", "email mail e_mail", "write_to", "e-mail address", "E-mail|Mail", "Почта|E-mail"),
    ),
    "invoice": (
        _field("number", "code", "number invoice_number invoice_no id", "reference", "number of the invoice",
               "Invoice|Invoice no|Number", "Счёт|Номер счёта|Счёт №"),
        _field("seller", "org", "seller supplier vendor issuer", "billed_by", "who sells", "Seller|Supplier|From", "Продавец|Поставщик"),
        _field("buyer", "org", "buyer customer client bill_to", "payer", "who buys", "Buyer|Bill to|Customer", "Покупатель|Заказчик|Плательщик"),
        _field("issued", "date", "issued date invoice_date issued_on", "made_out", "date of the invoice", "Date|Issued", "Дата|Выставлен"),
        _field("due", "date", "due due_date pay_by payable_by", "last_payment_day", "date to pay by", "Due|Pay by", "Оплатить до|Срок оплаты"),
        _field("total", "money", "total amount sum total_due", "to_pay", "sum to pay", "Total|Amount due", "Итого|Сумма"),
        _field("items", "list:product", "items goods products lines", "positions", "what is sold", "Items|Goods", "Товары|Позиции"),
        _field("paid", "bool", "paid is_paid settled", "already_paid", "whether it is paid", "", ""),
    ),
    "lab_report": (
        _field("sample", "code", "sample sample_id specimen", "probe", "code of the sample", "Sample|Sample no", "Проба|Образец"),
        _field("patient", "person", "patient name subject", "taken_from", "who was examined", "Patient|Name", "Пациент|ФИО"),
        _field("taken", "date", "taken date collected sampled_on", "day_of_sampling", "day of sampling", "Taken|Collected", "Взято|Дата забора"),
        _field("test", "enum:glucose,iron,calcium,cholesterol,lead", "test analyte substance", "measured", "what was measured", "", ""),
        _field("value", "decimal", "value result reading", "figure", "measured value", "Result|Value", "Результат|Значение"),
        _field("verdict", "enum:normal,high,low", "verdict flag assessment level", "outcome", "how the value is judged", "", ""),
        _field("doctor", "person", "doctor physician signed_by", "reviewer", "who signed", "Doctor|Signed by", "Врач|Подпись"),
        _field("lab", "org", "lab laboratory performed_by", "facility", "the laboratory", "Laboratory|Lab", "Лаборатория"),
    ),
    "event": (
        _field("title", "title", "title name event", "called", "name of the event", "Event|Title", "Событие|Название"),
        _field("kind", "enum:lecture,concert,workshop,exhibition,contest", "kind type category format", "sort_of_event",
               "kind of event", "", ""),
        _field("date", "date", "date day when held_on", "takes_place_on", "day of the event", "Date|Day|When", "Дата|Когда"),
        _field("start", "time", "start time starts_at begins", "opening_hour", "time of beginning", "Starts at|Time", "Начало|Время"),
        _field("venue", "venue", "venue place location", "hosted_at", "where", "Venue|Place", "Место|Где"),
        _field("speakers", "list:person", "speakers guests people performers", "on_stage", "who speaks or plays",
               "Speakers|With", "Участники|Выступают"),
        _field("price", "money", "price fee ticket entry", "cost_of_entry", "price of a ticket", "Ticket|Price|Entry", "Билет|Цена|Вход"),
    ),
    "order": (
        _field("number", "code", "number order_number order_id id", "reference", "number of the order", "Order|Order no", "Заказ|Номер заказа"),
        _field("customer", "person", "customer client recipient name", "addressee", "who ordered", "Customer|Recipient", "Клиент|Получатель"),
        _field("product", "product", "product item goods article", "merchandise", "what was ordered", "Item|Product", "Товар|Изделие"),
        _field("quantity", "int", "quantity qty count pieces", "how_many", "how many", "Quantity|Qty", "Количество|Кол-во"),
        _field("city", "city", "city town destination", "deliver_to", "where it goes", "City|Destination", "Город|Доставка в"),
        _field("courier", "org", "courier carrier delivered_by", "haulier", "who delivers", "Courier|Carrier", "Перевозчик|Курьер"),
        _field("delivery", "date", "delivery delivery_date arrives expected", "due_at_door", "day of delivery", "Delivery|Expected", "Доставка|Ожидается"),
        _field("status", "enum:shipped,delayed,delivered,cancelled", "status state", "stage", "state of the order", "", ""),
        _field("express", "bool", "express urgent priority", "fast_track", "whether it is urgent", "", ""),
    ),
    "vacancy": (
        _field("employer", "org", "employer company organization", "hiring_party", "who hires", "Employer|Company", "Работодатель|Компания"),
        _field("position", "job", "position job role job_title", "post", "the job", "Position|Job", "Должность|Вакансия"),
        _field("city", "city", "city location town place", "workplace_town", "where", "City|Location", "Город|Место работы"),
        _field("salary", "money", "salary pay wage", "remuneration", "monthly pay", "Salary|Pay", "Зарплата|Оклад"),
        _field("start", "date", "start start_date from begins", "first_day", "first working day", "Start|From", "Начало работы|Выход"),
        _field("contact", "person", "contact contact_person recruiter", "ask_for", "whom to ask", "Contact|Ask for", "Контакт|Обращаться"),
        _field("email", "email", "email mail apply_to", "write_to", "where to write", "E-mail|Apply to", "Почта|Резюме"),
        _field("remote", "bool", "remote from_home home_office", "telework", "whether work from home is possible", "", ""),
    ),
    "company": (
        _field("company", "org", "company name organization firm", "business", "name of the company", "Company|Name", "Компания|Название"),
        _field("leader", "person", "leader director head ceo", "run_by", "who heads it", "Director|Head", "Директор|Руководитель"),
        _field("founder", "person", "founder founded_by", "started_by", "who founded it", "Founder", "Основатель"),
        _field("founded", "year", "founded year since", "year_of_birth", "year of foundation", "Founded|Since", "Основана|Год основания"),
        _field("city", "city", "city headquarters seat based_in", "home_town", "where its seat is", "City|Seat", "Город|Штаб-квартира"),
        _field("staff", "int", "staff employees headcount people", "workforce", "number of employees", "Staff|Employees", "Сотрудников|Штат"),
        _field("product", "product", "product makes main_product", "known_for", "what it makes", "Product|Makes", "Продукт|Изделие"),
        _field("sector", "enum:energy,food,transport,software,health", "sector industry field", "line_of_business", "what it works in", "", ""),
    ),
}  # fmt: skip

JOBS = {
    "en": "welder|accountant|nurse|driver|cook|data analyst|site manager|librarian|electrician|teacher|translator|sales clerk"
    "|network engineer|baker|gardener|editor|surveyor|pharmacist".split("|"),
    "ru": "сварщик|бухгалтер|медсестра|водитель|повар|аналитик|прораб|библиотекарь|электрик|учитель|переводчик|продавец"
    "|сетевой инженер|пекарь|садовник|редактор|геодезист|фармацевт".split("|"),
}
