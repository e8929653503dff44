// Stands in for https://www.gstatic.com/charts/loader.js where there is no network: every chart is
// a plain table of its rows, so that a test can read what would be drawn.
(() => {
  const plain = (cell) => (cell && typeof cell === "object" && "v" in cell ? cell.f ?? cell.v : cell);

  class DataTable {
    columns = [];
    rows = [];
    addColumn(column) { this.columns.push(typeof column === "string" ? { type: column } : column); }
    addRow(row) { this.rows.push(row); }
    addRows(rows) { rows.forEach((row) => this.addRow(row)); }
    setProperty() {}
  }

  class Chart {
    constructor(place) { this.place = place; }
    draw(data, options) {
      const table = document.createElement("table");
      table.createCaption().textContent = (options && options.title) || "";
      const shown = data.columns.map((column, i) => ({ ...column, i })).filter((c) => !c.role);
      const add = (texts) => {
        const row = table.insertRow();
        texts.forEach((text) => { row.insertCell().textContent = text; });
      };
      add(shown.map((column) => column.label ?? ""));
      data.rows.forEach((row) => add(shown.map(({ i }) => plain(row[i]))));
      this.place.replaceChildren(table);
      this.ready?.();
    }
    clearChart() { this.place.replaceChildren(); }
    getSelection() { return []; }
    setSelection() {}
    getChartLayoutInterface() {
      const box = { left: 0, top: 0, width: 1, height: 1 };
      return { getChartAreaBoundingBox: () => box, getHAxisValue: (x) => x };
    }
  }

  const names = ["ColumnChart", "ComboChart", "LineChart", "PieChart", "SteppedAreaChart", "Table", "Timeline"];
  window.google = {
    charts: { load: () => Promise.resolve(), setOnLoadCallback: (loaded) => loaded() },
    visualization: {
      DataTable,
      arrayToDataTable: ([head, ...rows]) => {
        const data = new DataTable();
        head.forEach((column) => data.addColumn(typeof column === "object" ? column : { label: column }));
        data.addRows(rows);
        return data;
      },
      events: { addListener: (chart, event, call) => { chart[event] = call; } },
      ...Object.fromEntries(names.map((name) => [name, Chart])),
    },
  };
})();
